package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	"github.com/urfave/cli/v2"

	"github.com/husk-cri/husk/pkg/layerpull"
)

func TestBarLine(t *testing.T) {
	t.Parallel()
	half := &layerpull.Progress{Layers: 8, LayersDone: 3, Bytes: 500_000_000, BytesDone: 250_000_000}
	for name, c := range map[string]struct {
		p     *layerpull.Progress
		took  time.Duration
		width int
		want  string
	}{
		"layers not known": {nil, time.Second, 100, "pulling app"},
		"the beginning":    {half, time.Millisecond, 100, "pulling app [##########----------]  50% 250 MB/500 MB, layers 3/8"},
		"with a rate":      {half, 2 * time.Second, 100, "pulling app [##########----------]  50% 250 MB/500 MB, layers 3/8, 125 MB/s"},
		"no width":         {half, 0, 0, "pulling app [##########----------]  50% 250 MB/500 MB, layers 3/8"},
		"narrow":           {half, 0, 70, " app [##########----------]  50% 250 MB/500 MB, layers 3/8"},
		"too narrow":       {half, 0, 30, " [##########------"},
		"nothing to fetch": {&layerpull.Progress{Layers: 2, LayersDone: 2}, 0, 100, "pulling app [####################] 100% 0 B/0 B, layers 2/2"},
		"more than said":   {&layerpull.Progress{Layers: 1, Bytes: 10, BytesDone: 99}, 0, 100, "pulling app [####################] 100% 99 B/10 B, layers 0/1"},
	} {
		g := NewWithT(t)
		line := barLine("pulling app", c.p, c.took, c.width)
		g.Expect(line).To(Equal(c.want), name)
		if c.width > 0 {
			g.Expect(len(line)).To(BeNumerically("<=", c.width-timeWidth), name)
		}
	}
	NewWithT(t).Expect(barLine("pulling \x1b[2J", nil, 0, 80)).NotTo(ContainSubstring("\x1b"))
}

func TestBarOnATerminal(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	s := new(screen)
	tell, done := drawBar(s, "pulling a", func() int { return 120 })
	tell(layerpull.Progress{Layers: 2, Bytes: 1000, BytesDone: 250})
	g.Eventually(s.String).Should(ContainSubstring("25% 250 B/1 kB, layers 0/2"))
	tell(layerpull.Progress{Layers: 2, LayersDone: 1, Bytes: 1000, BytesDone: 750})
	g.Eventually(s.String).Should(ContainSubstring("75% 750 B/1 kB, layers 1/2"))
	done("2 of 2 layers", nil)
	g.Expect(s.String()).To(MatchRegexp(`\r\x1b\[Kpulling a: 2 of 2 layers, [0-9.]+s\n$`))

	s = new(screen)
	_, done = drawBar(s, "pulling b", func() int { return 120 })
	done("never shown", errors.New("refused"))
	g.Expect(s.String()).To(Equal("\r\x1b[K"), "the error has the line")
}

func TestProgressForScripts(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	for kind, want := range map[string][]layerpull.Progress{
		progressJSON: {{Layers: 2, Bytes: 10}, {Layers: 2, LayersDone: 2, Bytes: 10, BytesDone: 10}}, progressAuto: nil, progressNone: nil,
	} {
		var out bytes.Buffer
		set := flag.NewFlagSet("", flag.ContinueOnError)
		g.Expect(progressFlag().Apply(set)).To(Succeed())
		g.Expect(set.Set("progress", kind)).To(Succeed())
		tell, done := layerProgress(cli.NewContext(&cli.App{ErrWriter: &out}, set, nil), "pulling a")
		g.Expect(tell != nil).To(Equal(want != nil), kind)
		for _, p := range want {
			tell(p)
		}
		done("done", nil)
		var got []layerpull.Progress
		for lines := bufio.NewScanner(&out); lines.Scan(); {
			var p layerpull.Progress
			g.Expect(json.Unmarshal(lines.Bytes(), &p)).To(Succeed())
			got = append(got, p)
		}
		g.Expect(got).To(Equal(want), kind)
	}
}
