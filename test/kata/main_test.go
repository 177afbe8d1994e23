package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/husk-cri/husk/internal/testkit/fakekata"
	"github.com/husk-cri/husk/pkg/katavolume"
)

// created is the record's line of a container to which that option came.
func created(g *WithT, option string, spec map[string]string) string {
	line, err := json.Marshal(fakekata.Event{
		Event: "create", ID: "id", Spec: &rspec.Spec{Annotations: spec},
		Mounts: []fakekata.Mount{{Type: katavolume.MountType, Options: []string{option}}},
	})
	g.Expect(err).NotTo(HaveOccurred())
	return string(line) + "\n"
}

func TestRun(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	option := func(v katavolume.Volume) string {
		o, err := v.Option()
		g.Expect(err).NotTo(HaveOccurred())
		return o
	}
	spec := map[string]string{"a": "b"}
	v := katavolume.GuestPull("ref", spec)
	good := created(g, option(v), spec)
	ext := v
	ext.FSType = "overlay"
	for name, tc := range map[string]struct{ lines, says, fails string }{
		"two":             {good + good + `{"event":"start"}` + "\n", "2\n", ""},
		"none":            {`{"event":"refuse"}`, "0\n", ""},
		"no volume":       {created(g, "ro", spec), "", "found false"},
		"other bytes":     {created(g, strings.Replace(option(v), "=", "=IA", 1), spec), "", "decode"},
		"another type":    {created(g, option(ext), spec), "", "made"},
		"an annotation":   {created(g, option(v), map[string]string{"a": "c"}), "", "made"},
		"a broken record": {good[:20], "", "EOF"},
	} {
		path := filepath.Join(t.TempDir(), "record")
		g.Expect(os.WriteFile(path, []byte(tc.lines), 0o600)).To(Succeed())
		var out bytes.Buffer
		err := run([]string{path}, &out)
		g.Expect(out.String()).To(Equal(tc.says), name)
		if tc.fails == "" {
			g.Expect(err).NotTo(HaveOccurred(), name)
		} else {
			g.Expect(err).To(MatchError(ContainSubstring(tc.fails)), name)
		}
	}
}
