package sandbox

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// heard is what a parent was told.
type heard struct {
	mu  sync.Mutex
	all []string
}

func (h *heard) tell(raw json.RawMessage) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = append(h.all, strings.TrimSpace(string(raw)))
}

func (h *heard) list() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]string(nil), h.all...)
}

func TestReports(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	var h heard
	seen, err := run(t.Context(), t, Job{Progress: h.tell}, work{Do: "report"})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(seen).To(HaveKey("pid"), "the answer comes as ever")
	all := h.list()
	g.Expect(all).NotTo(BeEmpty())
	g.Expect(all[len(all)-1]).To(Equal(`{"step":3}`), "the last report is never lost")
	for _, report := range all {
		g.Expect(report).To(MatchRegexp(`^{"step":[123]}$`))
	}

	_, err = run(t.Context(), t, Job{}, work{Do: "report"})
	g.Expect(err).NotTo(HaveOccurred(), "nobody listens")
}

func TestReportsArriveWhileTheChildWorks(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	var h heard
	_, err := run(t.Context(), t, Job{Progress: func(raw json.RawMessage) {
		if h.tell(raw); strings.Contains(string(raw), "go on") {
			var where struct{ File string }
			g.Expect(json.Unmarshal(raw, &where)).To(Succeed())
			g.Expect(os.WriteFile(where.File, nil, 0o600)).To(Succeed())
		}
	}}, work{Do: "report and wait", Name: t.TempDir() + "/go on"})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(h.list()).To(HaveLen(1))
}

func TestHostileReports(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"report nonsense": "not JSON", "report a novel": "more than 4096 bytes", "report without end": "",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			var h heard
			begin := time.Now()
			_, err := run(t.Context(), t, Job{Progress: h.tell}, work{Do: name})
			if text == "" { // far more than a parent wants, but right
				g.Expect(err).NotTo(HaveOccurred())
				most := int(time.Since(begin)/reportPause) + 2 // one is in the ticker, and the last comes at once
				g.Expect(len(h.list())).To(And(BeNumerically(">", 0), BeNumerically("<=", most)))
				return
			}
			g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Internal))
			g.Expect(err).To(MatchError(ContainSubstring(text)), "and not that the kernel killed it")
			g.Expect(h.list()).To(BeEmpty())
		})
	}
}

// Somebody else may hold the pipe when the child is dead.
func TestAPipeThatStaysOpen(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	pipe, childs, err := os.Pipe()
	g.Expect(err).NotTo(HaveOccurred())
	defer func() { _ = childs.Close() }()
	var h heard
	r := &reports{pipe: pipe, tell: h.tell, ended: make(chan struct{}), done: make(chan error, 1)}
	go func() { r.done <- r.read() }()
	_, err = childs.WriteString("1\n2\n")
	g.Expect(err).NotTo(HaveOccurred())
	done := make(chan error)
	go func() { done <- r.end() }()
	g.Eventually(done, 10*reportGrace).Should(Receive(BeNil()))
	g.Expect(h.list()).To(ContainElement("2"))
	g.Expect(r.pipe.Close()).To(Succeed())
}

// reportAs does what the tests of reports want of a child.
func reportAs(do, name string, report Report) error {
	switch do {
	case "report":
		for step := range 3 {
			report(map[string]int{"step": step + 1})
		}
		report(strings.Repeat("x", maxReport)) // is dropped
		report(func() {})
	case "report and wait":
		report(map[string]string{"File": name})
		for deadline := time.Now().Add(10 * time.Second); ; {
			if _, err := os.Stat(name); err == nil {
				return nil
			}
			if time.Now().After(deadline) {
				return errors.New("the report did not arrive")
			}
			time.Sleep(time.Millisecond)
		}
	case "report without end":
		go func() {
			for {
				report(strings.Repeat("x", 40))
			}
		}()
		time.Sleep(10 * reportPause)
	case "report nonsense", "report a novel":
		line := "{\n"
		if do != "report nonsense" {
			line = strings.Repeat("1", 2*maxReport) + "\n"
		}
		if _, err := os.NewFile(reportFD, "reports").WriteString(line); err != nil {
			return err
		}
		select {} // until it is killed
	}
	return nil
}
