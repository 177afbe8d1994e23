package main

import (
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"text/tabwriter"
	"text/template"
	"unicode"

	"github.com/urfave/cli/v2"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// The formats that are no template.
const (
	formatText = "text"
	formatJSON = "json"
)

// formatFlag is --format, the same for every command that prints a result with [show].
func formatFlag(value string) cli.Flag {
	return &cli.StringFlag{
		Name: "format", Value: value,
		Usage: "print as `FORMAT`: text, json, or a Go template with json's names in camel case, such as '{{.ImageID}}'",
		Action: func(_ *cli.Context, format string) error { // before the command does anything
			if format == formatText || format == formatJSON {
				return nil
			}
			_, err := parseFormat(format)
			return err
		},
	}
}

// parseFormat reads a template as podman, docker and skopeo take it: \t and \n are what
// they stand for even where the shell passes them on as they are.
func parseFormat(format string) (*template.Template, error) {
	if !strings.Contains(format, "{{") {
		return nil, errdefs.Newf(errdefs.InvalidArgument, "--format", "%q is neither text nor json nor a Go template", format)
	}
	t, err := template.New("--format").Option("missingkey=error").Funcs(template.FuncMap{
		"json": func(v any) (string, error) {
			data, err := json.Marshal(v)
			return string(data), err
		},
		"join": strings.Join,
		"size": humanBytes,
	}).Parse(strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(format))
	if err != nil {
		return nil, errdefs.New(errdefs.InvalidArgument, "--format", err)
	}
	return t, nil
}

// show prints v as --format says: for people by text, as JSON, or by a template. A
// template is applied to each element of a slice, and each result ends its line.
func show(c *cli.Context, v any, text func(io.Writer) error) error {
	return showOn(c, c.App.Writer, v, text)
}

// showOn is show on a writer.
func showOn(c *cli.Context, w io.Writer, v any, text func(io.Writer) error) error {
	switch format := c.String("format"); format {
	case formatText:
		return text(w)
	case formatJSON:
		return printJSON(w, v)
	default:
		t, err := parseFormat(format)
		if err != nil {
			return err
		}
		return printTemplate(w, t, v)
	}
}

func printTemplate(w io.Writer, t *template.Template, v any) error {
	elements := []any{v}
	if rv := reflect.ValueOf(v); rv.Kind() == reflect.Slice {
		elements = elements[:0]
		for i := range rv.Len() {
			elements = append(elements, rv.Index(i).Interface())
		}
	}
	for _, e := range elements {
		var line strings.Builder
		if err := t.Execute(&line, e); err != nil { // a field that is not there, most likely
			return errdefs.Newf(errdefs.InvalidArgument, "--format", "%w; the fields are %s", err, strings.Join(fieldsOf(e), ", "))
		}
		if _, err := fmt.Fprintln(w, line.String()); err != nil {
			return err
		}
	}
	return nil
}

// fieldsOf lists what a template can name of a view, which is a struct.
func fieldsOf(view any) []string {
	var names []string
	for _, f := range reflect.VisibleFields(reflect.TypeOf(view)) {
		if f.IsExported() && !f.Anonymous {
			names = append(names, f.Name)
		}
	}
	return names
}

// oneLine keeps text of others, an image's author or a damaged record, within its row
// and the terminal as it is.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
}

// printTable prints rows below their headings, in columns.
func printTable(w io.Writer, headings []string, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	for _, row := range append([][]string{headings}, rows...) {
		cells := make([]string, 0, len(row))
		for _, cell := range row {
			cells = append(cells, oneLine(cell))
		}
		if _, err := fmt.Fprintln(t, strings.Join(cells, "\t")); err != nil {
			return err
		}
	}
	return t.Flush()
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// humanBytes prints a size the way podman and crictl do: decimal units.
func humanBytes(n int64) string {
	units := []string{"B", "kB", "MB", "GB", "TB", "PB", "EB"}
	value, at := float64(n), 0
	for value >= 999.5 && at < len(units)-1 { // what would print as 1e+03
		value /= 1000
		at++
	}
	if at == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.3g %s", value, units[at])
}

// noArgs refuses arguments of a command that takes none.
func noArgs(c *cli.Context) error {
	if c.NArg() > 0 {
		return errdefs.Newf(errdefs.InvalidArgument, c.Command.Name, "takes no arguments, got %q", c.Args().First())
	}
	return nil
}

// oneArg returns the command's only argument.
func oneArg(c *cli.Context, what string) (string, error) {
	if slices.ContainsFunc(c.Args().Tail(), func(arg string) bool { return strings.HasPrefix(arg, "-") }) {
		return "", errdefs.Newf(errdefs.InvalidArgument, c.Command.Name, "options go before %s; usage: %s", what, c.Command.UsageText)
	}
	if c.NArg() != 1 {
		return "", errdefs.Newf(errdefs.InvalidArgument, c.Command.Name, "want %s, got %d arguments", what, c.NArg())
	}
	return c.Args().First(), nil
}
