package cstore

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/manifestonly/storetest"
)

// childRoots tells the re-executed test binary where to write: "graph:run".
const childRoots = "HUSK_TEST_CHILD_ROOTS"

// TestChildWriter is not a test of its own: it is what TestKill and
// TestProcesses run in other processes.
func TestChildWriter(t *testing.T) {
	roots, name, ok := strings.Cut(os.Getenv(childRoots), "|")
	if !ok {
		t.Skip("runs only as a child of other tests")
	}
	graph, run, _ := strings.Cut(roots, ":")
	s, err := Open(Options{GraphRoot: graph, RunRoot: run, Driver: "vfs"})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 40 {
		spec := storetest.Spec{
			Reference:  "registry.test/app:v1", // the tag moves all the time
			Salt:       fmt.Sprint(i % 10),
			Index:      fmt.Sprint(i % 5),
			Signatures: [][]byte{[]byte("\xa0" + strings.Repeat("s", i%7))},
			PulledAt:   time.Now().UTC(),
		}
		if _, err := s.Put(context.WithoutCancel(t.Context()), storetest.Make(t, spec)); err != nil {
			t.Fatal(name, err)
		}
	}
}

func child(t *testing.T, p *place, name string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestChildWriter$")
	// The run root of p's own handle: the flock must hold between processes.
	cmd.Env = append(os.Environ(), childRoots+"="+p.opts.GraphRoot+":"+p.opts.RunRoot+"|"+name)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// TestKill kills a writer at random moments. CRI-O must be able to list images
// at once, and after a repair nothing is left of it.
func TestKill(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPlace(t, "vfs")
	rounds, halves, killed := 15, 0, 0
	if testing.Short() {
		rounds = 5
	}
	for round := range rounds {
		cmd := child(t, p, fmt.Sprint(round))
		// Starting takes a few tens of milliseconds, the writing about 200.
		time.Sleep(time.Duration(20+rand.IntN(180)) * time.Millisecond)
		g.Expect(cmd.Process.Kill()).To(Succeed())
		if err := cmd.Wait(); err != nil && cmd.ProcessState.Sys().(syscall.WaitStatus).Signaled() {
			killed++
		}
		_, err := p.crioView(t.Context())
		g.Expect(err).NotTo(HaveOccurred(), "CRI-O goes on before any repair")
		halves += p.repair(t)
		g.Expect(p.check(t, CheckOptions{}).Findings).To(BeEmpty())
		images, err := p.crio.Images()
		g.Expect(err).NotTo(HaveOccurred())
		records, err := p.List(t.Context())
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(records).To(HaveLen(len(images)), "every image is a whole record")
		p.sound(t)
		// The next round makes new records, not updates of these.
		for _, r := range records[:len(records)/2] {
			g.Expect(p.Remove(t.Context(), r.StorageID)).To(Succeed())
		}
	}
	t.Logf("%d rounds, %d killed in the middle, %d left-overs", rounds, killed, halves)
	g.Expect(killed).To(BeNumerically(">", 0), "the test kills nobody")
}

// TestProcesses has several processes write the same records at once.
func TestProcesses(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPlace(t, "vfs")
	children := []*exec.Cmd{child(t, p, "a"), child(t, p, "b"), child(t, p, "c")}
	for _, cmd := range children {
		g.Expect(cmd.Wait()).To(Succeed())
	}
	records, err := p.List(t.Context())
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(records).To(HaveLen(10))
	holders := 0
	for _, r := range records {
		for _, ref := range r.References {
			if ref.Reference.Tag() == "v1" {
				holders++
			}
		}
	}
	g.Expect(holders).To(Equal(1), "one record holds the tag")
	_, err = p.crioView(t.Context())
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(p.repair(t)).To(Equal(0))
	p.sound(t)
}

// A check that repairs, while others write, finds nothing in what they are doing.
func TestCheckWhileOthersWrite(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPlace(t, "vfs")
	children := []*exec.Cmd{child(t, p, "a"), child(t, p, "b")}
	done := make(chan error, len(children))
	for _, cmd := range children {
		go func() { done <- cmd.Wait() }()
	}
	checks, seen := 0, 0
	for left := len(children); left > 0; {
		select {
		case err := <-done:
			g.Expect(err).NotTo(HaveOccurred())
			left--
		default:
			report := p.check(t, CheckOptions{Repair: true})
			g.Expect(report.Findings).To(BeEmpty())
			checks, seen = checks+1, max(seen, report.Records)
		}
	}
	t.Logf("%d checks", checks)
	g.Expect(seen).To(BeNumerically(">", 0), "the checks saw records come")
	g.Expect(p.List(t.Context())).To(HaveLen(10))
	p.sound(t)
}
