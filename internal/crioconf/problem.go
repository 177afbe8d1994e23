package crioconf

import (
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strings"
	"unicode"

	"github.com/BurntSushi/toml"
)

// Problem is one thing in a configuration file that will not work. It is an error
// too, to be found with errors.As.
type Problem struct {
	// File is where to mend it.
	File string `json:"file"`
	// Key is the setting, dotted as in "crio.api.listen"; empty when the file is no TOML.
	Key string `json:"key,omitempty"`
	// What is wrong, in lower case.
	What string `json:"what"`
	// Remedy is what to do about it.
	Remedy string `json:"remedy,omitempty"`
	// Fatal: Husk does not start with it. The others it starts with, but something
	// will not work.
	Fatal bool `json:"fatal"`

	cause error
}

// Error returns "FILE: key: what is wrong: what to do".
func (p Problem) Error() string {
	var parts []string
	for _, s := range []string{p.File, p.Key, p.What, p.Remedy} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	return printable(strings.Join(parts, ": "))
}

// printable is s on one line, without what a terminal would obey.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
}

// Unwrap returns what the file or the decoder said, if anything.
func (p Problem) Unwrap() error { return p.cause }

// ReadProblem is the [Problem] of a file that cannot be read.
func ReadProblem(file string, err error) Problem {
	what := err
	var path *fs.PathError
	if errors.As(err, &path) { // whose text has the name again
		what = path.Err
	}
	return Problem{
		File: file, What: "cannot be read: " + what.Error(), Remedy: "write it, or name another", Fatal: true, cause: err,
	}
}

// typeError is how the decoder words a value of the wrong type, its one error that
// is no toml.ParseError.
var typeError = regexp.MustCompile(`^toml: (?:line (\d+) )?\(last key "(.*)"\): (.*)$`)

// ParseProblem is the [Problem] of a file that the TOML decoder refused.
func ParseProblem(file string, err error) Problem {
	p := Problem{File: file, What: err.Error(), Remedy: "mend the line", Fatal: true, cause: err}
	var parse toml.ParseError
	switch {
	case errors.As(err, &parse):
		p.Key, p.What = parse.LastKey, fmt.Sprintf("line %d: %s", parse.Position.Line, strings.TrimSuffix(parse.Message, "."))
	default:
		if m := typeError.FindStringSubmatch(err.Error()); m != nil {
			p.Key, p.What = m[2], m[3]
			if m[1] != "" {
				p.What = "line " + m[1] + ": " + m[3]
			}
		}
	}
	return p
}
