package bundles

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containers/storage"
	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// childRoots tells the re-executed test binary where to write and what:
// "graph:run:driver|task".
const childRoots = "HUSK_TEST_CHILD_ROOTS"

// TestChildWriter is not a test of its own: it is what the tests below run in other
// processes.
func TestChildWriter(t *testing.T) {
	roots, task, ok := strings.Cut(os.Getenv(childRoots), "|")
	if !ok {
		t.Skip("runs only as a child of other tests")
	}
	where := strings.Split(roots, ":")
	s, err := Open(Options{GraphRoot: where[0], RunRoot: where[1], Driver: where[2]})
	if err != nil {
		t.Fatal(err)
	}
	p := &place{Store: s}
	images, err := s.store.Images()
	if err != nil || len(images) != 1 {
		t.Fatal(images, err)
	}
	ctx := context.WithoutCancel(t.Context())
	kind, name, _ := strings.Cut(task, "=")
	switch kind {
	case "churn":
		for i := range 40 {
			if err := p.churn(ctx, images[0].ID, fmt.Sprintf("%s-%d", name, i)); err != nil {
				t.Fatal(err)
			}
		}
	case "win": // one pod name for all: print who made it
		_, err := s.Create(ctx, sandbox(name), someSpec())
		if err == nil {
			fmt.Println("made it")
		} else if !errors.Is(err, ErrExists) {
			t.Fatal(err)
		}
	case "count": // a change is a read and a write
		for range 50 {
			if _, err := s.Update(ctx, name, func(c *Container) { c.State.ExitCode++ }); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// churn makes a pod of two, works on it and removes it.
func (p *place) churn(ctx context.Context, image, name string) error {
	sb, err := p.Create(ctx, sandbox(name), someSpec())
	if err != nil {
		return err
	}
	c := Container{ID: NewID(), Name: name, Pod: sb.Pod}
	if err := c.Image.RecordID.UnmarshalText([]byte(image)); err != nil {
		return err
	}
	if c, err = p.Create(ctx, c, someSpec()); err != nil {
		return err
	}
	if _, err := p.Finish(ctx, c.ID, nil); err != nil {
		return err
	}
	if _, err := p.Update(ctx, c.ID, func(c *Container) { c.State.Status = StatusRunning }); err != nil {
		return err
	}
	if err := p.UpdatePod(ctx, sb.ID, func(q *Pod) { q.IPs = []string{"10.1.1.1"} }); err != nil {
		return err
	}
	if err := p.Remove(ctx, c.ID); err != nil {
		return err
	}
	return p.Remove(ctx, sb.ID)
}

func (p *place) child(t *testing.T, task string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestChildWriter$")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s:%s:%s|%s", childRoots, p.opts.GraphRoot, p.opts.RunRoot, p.opts.Driver, task))
	cmd.Stderr = os.Stderr
	return cmd
}

// TestKill kills a writer at random moments. At once every container that is seen is
// whole; after a sweep nothing else is left, and everything can be removed.
func TestKill(t *testing.T) {
	t.Parallel()
	drivers(t, func(t *testing.T, p *place) {
		g := NewWithT(t)
		rounds, killed, swept, seen := 25, 0, 0, 0
		if testing.Short() {
			rounds = 5
		}
		for round := range rounds {
			cmd := p.child(t, fmt.Sprint("churn=r", round))
			g.Expect(cmd.Start()).To(Succeed())
			time.Sleep(time.Duration(20+rand.IntN(250)) * time.Millisecond)
			g.Expect(cmd.Process.Kill()).To(Succeed())
			if err := cmd.Wait(); err != nil && cmd.ProcessState.Sys().(syscall.WaitStatus).Signaled() {
				killed++
			}
			list, err := p.List(t.Context())
			g.Expect(err).NotTo(HaveOccurred())
			for i := range list {
				_, err := p.Finish(t.Context(), list[i].ID, nil)
				g.Expect(err).NotTo(HaveOccurred(), "what is seen is whole")
				g.Expect(p.Members(t.Context(), list[i].Pod.ID)).NotTo(BeEmpty())
			}
			found, err := p.Check(t.Context())
			g.Expect(err).NotTo(HaveOccurred())
			for _, f := range found {
				g.Expect(f.Kind).To(Equal(Unfinished), "%+v", f)
			}
			gone, err := p.Sweep(t.Context())
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(gone).To(HaveLen(len(found)))
			swept, seen = swept+len(gone), seen+len(list)
			g.Expect(p.Check(t.Context())).To(BeEmpty())
			g.Expect(p.List(t.Context())).To(HaveLen(len(list)), "a sweep touches nothing that is seen")
			p.sound(t)
			p.removeAll(t)
		}
		t.Logf("%d rounds, %d killed in the middle, %d left-overs swept, %d containers seen", rounds, killed, swept, seen)
		g.Expect(killed).To(BeNumerically(">", 0), "the test kills nobody")
	})
}

// removeAll removes every container, members first.
func (p *place) removeAll(t *testing.T) {
	t.Helper()
	list, err := p.List(t.Context())
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	for i := len(list) - 1; i >= 0; i-- {
		NewWithT(t).Expect(p.Remove(t.Context(), list[i].ID)).To(Succeed())
	}
	NewWithT(t).Expect(p.crio.Containers()).To(BeEmpty())
}

// TestEveryStep makes by hand what a kill between any two steps leaves.
func TestEveryStep(t *testing.T) {
	t.Parallel()
	layer := func(p *place, c *Container) error {
		_, err := p.crio.CreateLayer(layerID(c.ID), "", nil, "", true, nil)
		return err
	}
	record := func(p *place, c *Container) error {
		text, err := stored{Version: version, Container: *c}.encode()
		if err == nil {
			_, err = p.crio.CreateContainer(c.ID, c.storedNames(), c.Image.RecordID.String(), layerID(c.ID), text, nil)
		}
		return err
	}
	template := func(p *place, c *Container) error {
		return p.crio.SetContainerDirectoryFile(c.ID, templateName, []byte("{"))
	}
	dirs := func(p *place, c *Container) error {
		_, err := p.crio.ContainerDirectory(c.ID)
		if err == nil {
			err = os.RemoveAll(filepath.Join(p.opts.GraphRoot, p.opts.Driver+"-containers", c.ID))
		}
		return err
	}
	noLayer := func(p *place, c *Container) error {
		for _, file := range []string{"layers.json", "volatile-layers.json"} {
			err := os.WriteFile(filepath.Join(p.opts.GraphRoot, p.opts.Driver+"-layers", file), []byte("[]"), 0o600)
			if err != nil {
				return err
			}
		}
		return errors.Join(
			os.RemoveAll(filepath.Join(p.opts.GraphRoot, "overlay", layerID(c.ID))),
			os.RemoveAll(filepath.Join(p.opts.GraphRoot, "vfs", "dir", layerID(c.ID))))
	}
	type step func(*place, *Container) error
	for name, steps := range map[string][]step{
		"nothing":                       nil,
		"a layer":                       {layer},
		"a record":                      {record},
		"a record and half a template":  {record, template},
		"a record without its files":    {record, template, dirs},
		"a record without its layer":    {record, noLayer},
		"a record without either of it": {record, template, noLayer, dirs},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			drivers(t, func(t *testing.T, p *place) {
				g := NewWithT(t)
				c := sandbox("web")
				complete(&c, time.Now())
				g.Expect(p.mark(c.ID)).To(Succeed())
				for _, s := range steps {
					g.Expect(s(p, &c)).To(Succeed())
				}
				g.Expect(p.List(t.Context())).To(BeEmpty())
				_, err := p.Get(t.Context(), c.Name)
				g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound))
				_, err = p.Finish(t.Context(), c.ID, nil)
				g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound))
				_, err = p.Update(t.Context(), c.ID, func(*Container) {})
				g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound))
				g.Expect(p.Check(t.Context())).To(ConsistOf(HaveField("Kind", Unfinished)))
				// The same container again, without a sweep.
				made := p.create(t, c)
				g.Expect(p.List(t.Context())).To(Equal([]Container{made}))
				p.finished(t, made)
				g.Expect(p.Remove(t.Context(), c.ID)).To(Succeed())

				g.Expect(p.mark(c.ID)).To(Succeed())
				for _, s := range steps {
					g.Expect(s(p, &c)).To(Succeed())
				}
				g.Expect(p.Sweep(t.Context())).To(Equal([]string{c.ID}))
				g.Expect(p.Sweep(t.Context())).To(BeEmpty())
			})
		})
	}
}

// A member whose removal was killed holds its sandbox no longer.
func TestSandboxAfterAKilledRemove(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPlace(t, "vfs").pulled(t)
	pod := p.pod(t, "nginx")
	g.Expect(p.mark(pod[1].ID)).To(Succeed())
	g.Expect(p.Remove(t.Context(), pod[0].ID)).To(Succeed())
	g.Expect(p.crio.Containers()).To(BeEmpty())
	p.sound(t)
}

// TestOneWins has several processes make the same pod.
func TestOneWins(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPlace(t, "overlay").pulled(t)
	for round := range 5 {
		name := fmt.Sprint("pod", round)
		var children []*exec.Cmd
		var outs []*strings.Builder
		for range 4 {
			cmd, out := p.child(t, "win="+name), &strings.Builder{}
			cmd.Stdout = out
			g.Expect(cmd.Start()).To(Succeed())
			children, outs = append(children, cmd), append(outs, out)
		}
		made := 0
		for i, cmd := range children {
			g.Expect(cmd.Wait()).To(Succeed(), outs[i].String())
			made += strings.Count(outs[i].String(), "made it")
		}
		g.Expect(made).To(Equal(1))
		g.Expect(p.Members(t.Context(), name)).To(HaveLen(1))
	}
	p.sound(t)
}

// TestProcesses has several processes change one container, and others come and go.
func TestProcesses(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	p := newPlace(t, "overlay").pulled(t)
	c := p.pod(t, "nginx")[1]
	tasks := []string{"count=" + c.ID, "count=" + c.ID, "churn=a", "churn=b"}
	var children []*exec.Cmd
	for _, task := range tasks {
		cmd := p.child(t, task)
		g.Expect(cmd.Start()).To(Succeed())
		children = append(children, cmd)
	}
	done := make(chan error, len(children))
	for _, cmd := range children {
		go func() { done <- cmd.Wait() }()
	}
	for left := len(children); left > 0; {
		select {
		case err := <-done:
			g.Expect(err).NotTo(HaveOccurred())
			left--
		default:
			g.Expect(p.Check(t.Context())).To(BeEmpty(), "nothing is wrong while others work")
			g.Expect(p.Sweep(t.Context())).To(BeEmpty())
			list, err := p.List(t.Context())
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(names(list)).To(ContainElements("web-infra", "nginx"))
		}
	}
	got, err := p.Get(t.Context(), c.ID)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(got.State.ExitCode).To(Equal(100), "no change was lost")
	p.removeAll(t)
	p.sound(t)
}

// A container that is being made by a living process is no left-over, and its image is
// held as soon as it is seen.
func TestImageIsHeld(t *testing.T) {
	t.Parallel()
	drivers(t, func(t *testing.T, p *place) {
		g := NewWithT(t)
		c := p.pod(t, "nginx")[1]
		err := p.images.Remove(t.Context(), p.record.StorageID)
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InUse), "%v", err)
		err = p.images.RemoveReference(t.Context(), p.record.References[0].Reference)
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InUse), "%v", err)
		gone, err := p.images.Sweep(t.Context(), time.Hour, time.Now().Add(24*time.Hour))
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(gone).To(BeEmpty())
		_, err = p.crio.DeleteImage(p.record.StorageID.String(), true)
		g.Expect(err).To(MatchError(storage.ErrImageUsedByContainer))
		g.Expect(p.images.List(t.Context())).To(HaveLen(1))

		g.Expect(p.Remove(t.Context(), c.ID)).To(Succeed())
		g.Expect(p.images.Remove(t.Context(), p.record.StorageID)).To(Succeed())
		g.Expect(p.images.List(t.Context())).To(BeEmpty())
	})
}
