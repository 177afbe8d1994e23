package shim

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	. "github.com/onsi/gomega"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// deleter is an OCI runtime that is only good for deleting, and notes what it is called
// for. It fails while there is a file called broken, and answers with one called state.
type deleter struct{ dir string }

// newDeleter makes one the runtime of the rig's containers.
func newDeleter(t *testing.T, r *serviceRig) deleter {
	t.Helper()
	d := deleter{t.TempDir()}
	d.write(t, "runtime", `#!/bin/sh
echo "$*" >>`+d.dir+`/calls
case $3 in
state) cat `+d.dir+`/state;;
delete) [ ! -e `+d.dir+`/broken ] || { echo it does not die >&2; exit 1; };;
esac
`)
	r.config = writeConfig(t, fmt.Sprintf("runtime = %q\nruntime_root = %q\n", filepath.Join(d.dir, "runtime"), filepath.Join(d.dir, "root")))
	if err := os.MkdirAll(d.root(), 0o700); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d deleter) root() string { return filepath.Join(d.dir, "root", "default") }

func (d deleter) write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(d.dir, name), []byte(content), 0o700); err != nil {
		t.Fatal(err)
	}
}

// deletions are the containers that it was told to delete.
func (d deleter) deletions(t *testing.T) []string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(d.dir, "calls"))
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for line := range strings.Lines(string(data)) {
		if id, ok := strings.CutPrefix(strings.TrimSpace(line), "--root "+d.root()+" delete --force "); ok {
			ids = append(ids, id)
		}
	}
	return ids
}

func TestFailedCreateIsTakenBackInTheRuntime(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		// created is set where the runtime's own part succeeded.
		created bool
		prepare func(t *testing.T, d deleter, bundle string)
		deletes bool
	}{
		"after the runtime's part": {created: true, deletes: true},
		"in the runtime's part":    {deletes: true},
		"a runtime that fails in all": {
			prepare: func(t *testing.T, d deleter, _ string) { d.write(t, "broken", "") },
			deletes: true,
		},
		"a runtime that has nothing": {
			prepare: func(t *testing.T, d deleter, _ string) {
				if err := os.RemoveAll(d.root()); err != nil {
					t.Error(err)
				}
			},
		},
		"by a path of its own": {
			created: true, deletes: true,
			prepare: func(t *testing.T, d deleter, bundle string) {
				if err := os.Symlink(bundle, filepath.Join(d.dir, "link")); err != nil {
					t.Error(err)
				}
				d.write(t, "state", `{"bundle":"`+d.dir+`/link"}`)
			},
		},
		"an ID that another pod has": {
			prepare: func(t *testing.T, d deleter, _ string) { d.write(t, "state", `{"bundle":"`+d.dir+`"}`) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			r := newServiceRig(t, nil)
			d := newDeleter(t, &r)
			r.inner.createErr = errors.New("no such stream")
			req := r.request(t, "s1", asSandbox)
			if tc.created {
				g.Expect(os.WriteFile(filepath.Join(req.Bundle, pidFile), []byte("42"), 0o600)).To(Succeed())
			}
			if tc.prepare != nil {
				tc.prepare(t, d, req.Bundle)
			}
			_, err := r.Create(inNamespace(t), req)
			g.Expect(err).To(MatchError(ContainSubstring("no such stream")))
			if tc.deletes {
				g.Expect(d.deletions(t)).To(Equal([]string{"s1"}))
			} else {
				g.Expect(d.deletions(t)).To(BeEmpty())
			}
			g.Expect(r.pod.List()).To(BeEmpty())
			g.Expect(r.containers).To(BeEmpty())
		})
	}
}

// What the runtime cannot delete is still there, and so is its record.
func TestFailedCreateThatCannotBeTakenBack(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := newServiceRig(t, nil)
	d := newDeleter(t, &r)
	d.write(t, "broken", "")
	r.inner.createErr = errors.New("no such stream")
	ctx := inNamespace(t)
	req := r.request(t, "s1", asSandbox)
	g.Expect(os.WriteFile(filepath.Join(req.Bundle, pidFile), []byte("42"), 0o600)).To(Succeed())
	_, err := r.Create(ctx, req)
	g.Expect(err).To(MatchError(ContainSubstring("no such stream")))
	g.Expect(r.pod.Get("s1")).To(HaveField("Bundle", req.Bundle))
	_, err = r.Create(ctx, req)
	g.Expect(status.Code(err)).To(Equal(codes.AlreadyExists))
	for range 2 {
		_, err = r.Delete(ctx, &taskapi.DeleteRequest{ID: "s1"})
		g.Expect(err).To(MatchError(ContainSubstring("it does not die")))
		g.Expect(r.pod.List()).To(HaveLen(1))
	}

	// With the sandbox the pod is over: the end of the shim tries once more.
	g.Expect(os.Remove(filepath.Join(d.dir, "broken"))).To(Succeed())
	_, err = r.Shutdown(ctx, &taskapi.ShutdownRequest{ID: "s1"})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(d.deletions(t)).To(Equal([]string{"s1", "s1", "s1", "s1"}))
	g.Expect(r.pod.List()).To(BeEmpty())
	g.Expect(r.containers).To(BeEmpty())
}
