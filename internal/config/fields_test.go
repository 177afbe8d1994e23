package config

import (
	"bytes"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/gomega"
)

// keysOf lists the keys of a struct, prefixed.
func keysOf(v any, prefix string) []string {
	var keys []string
	rt := reflect.TypeOf(v)
	for i := range rt.NumField() {
		if key := rt.Field(i).Tag.Get("toml"); key != handlersKey {
			keys = append(keys, prefix+key)
		}
	}
	return keys
}

func TestEveryFieldIsInTheTable(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	want := append(keysOf(Config{}, ""), keysOf(Handler{}, handlersKey+".NAME.")...)
	var have []string
	for _, f := range Fields() {
		have = append(have, f.Key)
		g.Expect([]string{f.Doc, f.Zero, f.Example}).NotTo(ContainElement(BeEmpty()), f.Key)
		g.Expect(f.Doc+f.Zero).NotTo(ContainAny("|\n"), "it is a cell and a comment: %s", f.Key)
		g.Expect(f.Doc).NotTo(HaveSuffix("."), f.Key)
	}
	g.Expect(have).To(ConsistOf(want))
}

// ContainAny matches a string with one of the characters.
func ContainAny(chars string) OmegaMatcher {
	return WithTransform(func(s string) bool { return strings.ContainsAny(s, chars) }, BeTrue())
}

func TestExamplesAreValid(t *testing.T) {
	t.Parallel()
	for _, f := range Fields() {
		g := NewWithT(t)
		table, key := "", f.Key
		if rest, ok := strings.CutPrefix(f.Key, handlersKey+".NAME."); ok {
			table, key = "[handlers.NAME]\n", rest
		}
		l := Read(write(t, table+key+" = "+f.Example+"\n"))
		g.Expect(l.Err()).NotTo(HaveOccurred(), f.Key)
		g.Expect(l.Origins).To(HaveKey(f.Key))
	}
}

// TestDocs compares docs/configuration.md with the table. UPDATE_DOCS=1 writes it.
func TestDocs(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	const path, begin, end = "../../docs/configuration.md", "<!-- fields: begin -->\n", "<!-- fields: end -->"
	data, err := os.ReadFile(path)
	g.Expect(err).NotTo(HaveOccurred())
	before, rest, ok := strings.Cut(string(data), begin)
	g.Expect(ok).To(BeTrue(), "no %s", begin)
	have, after, ok := strings.Cut(rest, end)
	g.Expect(ok).To(BeTrue(), "no %s", end)
	var want bytes.Buffer
	g.Expect(WriteTable(&want)).To(Succeed())
	if os.Getenv("UPDATE_DOCS") != "" {
		g.Expect(os.WriteFile(path, []byte(before+begin+want.String()+end+after), 0o644)).To(Succeed())
		return
	}
	g.Expect(have).To(Equal(want.String()), "UPDATE_DOCS=1 go test ./internal/config writes it")
}

func TestDiff(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	old := Config{Listen: "/a", MaxPulls: 1, Handlers: map[string]Handler{"x": {MaxLayers: 1}}}
	g.Expect(Diff(old, old)).To(BeEmpty())
	next := old
	next.LogLevel, next.PullTimeout, next.RecordTTL = "debug", Duration{time.Second}, Duration{time.Hour}
	next.Handlers = map[string]Handler{"x": {MaxLayers: 2}, "y": {PullInSandbox: true}}
	g.Expect(Diff(old, next)).To(BeEmpty(), "these change at once")
	next.MetricsListen, next.Listen, next.Backend, next.HandoverSocket = "unix:///m", "/b", "/c", "/d"
	g.Expect(Diff(old, next)).To(Equal([]string{"listen", "backend", "handover_socket", "metrics_listen"}))
	g.Expect(Diff(Config{}, Config{MaxPulls: 3, LogFormat: "json"})).To(Equal([]string{"log_format"}))
}
