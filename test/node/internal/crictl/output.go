package crictl

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/gogo/protobuf/jsonpb"
	"github.com/gogo/protobuf/proto"
	"github.com/urfave/cli/v2"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/yaml"
)

// maxConfig bounds a pod or container file.
const maxConfig = 4 << 20

// shortID is how much of an ID a table shows.
const shortID = 13

func outputFlag(value string) cli.Flag {
	return &cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: value, Usage: "output format: json, or table where there is one"}
}

func quietFlag() cli.Flag {
	return &cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "only IDs"}
}

// readConfig reads a pod or container configuration, JSON or YAML, from a file.
func readConfig(path string, into any) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open configuration: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	b, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if len(b) > maxConfig {
		return fmt.Errorf("%s is larger than %d bytes", path, maxConfig)
	}
	if err := yaml.UnmarshalStrict(b, into); err != nil {
		return fmt.Errorf("parse %s: %w", path, err)
	}
	return nil
}

func podConfig(path string) (*runtimeapi.PodSandboxConfig, error) {
	var p runtimeapi.PodSandboxConfig
	return &p, readConfig(path, &p)
}

func marshal(m proto.Message) (string, error) {
	s, err := (&jsonpb.Marshaler{EmitDefaults: true, Indent: "  "}).MarshalToString(m)
	if err != nil {
		return "", fmt.Errorf("marshal answer: %w", err)
	}
	return s, nil
}

// printJSON prints an answer as crictl does: camelCase names, enums as words, 64-bit numbers as strings.
func printJSON(c *cli.Context, m proto.Message) error {
	s, err := marshal(m)
	if err != nil {
		return err
	}
	return printIndented(c, []byte(s))
}

func printIndented(c *cli.Context, raw json.RawMessage) error {
	b, err := json.MarshalIndent(raw, "", "  ")
	if err != nil {
		return fmt.Errorf("marshal answer: %w", err)
	}
	if _, err := fmt.Fprintf(c.App.Writer, "%s\n", b); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

// printStatus prints {"info": ..., "status": ...}. Values of info that are JSON themselves are embedded as such.
func printStatus(c *cli.Context, status proto.Message, info map[string]string) error {
	s, err := marshal(status)
	if err != nil {
		return err
	}
	all := map[string]any{"status": json.RawMessage(s)}
	infos := make(map[string]any, len(info))
	for k, v := range info {
		if json.Valid([]byte(v)) {
			infos[k] = json.RawMessage(v)
		} else {
			infos[k] = v
		}
	}
	if i, ok := infos["info"]; ok && len(infos) == 1 {
		all["info"] = i
	} else {
		all["info"] = infos
	}
	b, err := json.Marshal(all)
	if err != nil {
		return fmt.Errorf("marshal answer: %w", err)
	}
	return printIndented(c, b)
}

// printIDs is what a list prints with --quiet.
func printIDs[T interface{ GetId() string }](c *cli.Context, list []T) error {
	ids := make([]string, 0, len(list))
	for _, item := range list {
		ids = append(ids, item.GetId())
	}
	return printLines(c, ids)
}

func printLines(c *cli.Context, lines []string) error {
	for _, l := range lines {
		if _, err := fmt.Fprintln(c.App.Writer, l); err != nil {
			return fmt.Errorf("write: %w", err)
		}
	}
	return nil
}

func printTable(c *cli.Context, rows [][]string) error {
	w := tabwriter.NewWriter(c.App.Writer, 20, 1, 3, ' ', 0)
	for _, r := range rows {
		if _, err := fmt.Fprintln(w, strings.Join(r, "\t")); err != nil {
			return fmt.Errorf("write: %w", err)
		}
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

func short(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	if len(id) > shortID {
		return id[:shortID]
	}
	return id
}

func ago(nanoseconds int64) string {
	return time.Since(time.Unix(0, nanoseconds)).Truncate(time.Second).String() + " ago"
}
