package bundles

import (
	"fmt"
	"testing"
	"time"

	"github.com/containers/storage"

	"github.com/husk-cri/husk/manifestonly/storetest"
)

// benchStore has an image and as many containers as a large node.
func benchStore(b *testing.B, containers int) (*place, Container) {
	b.Helper()
	p := newPlace(b, "overlay")
	image := storetest.Spec{Reference: "registry.test/app:v1", PulledAt: time.Now().UTC()}
	rec, err := p.images.Put(b.Context(), storetest.Make(b, image))
	if err != nil {
		b.Fatal(err)
	}
	p.record = rec
	pod := p.create(b, sandbox("web"))
	for i := range containers - 1 {
		p.create(b, p.member(pod, fmt.Sprint("c", i)))
	}
	return p, pod
}

// BenchmarkContainer is what a container costs, from nothing to removed; the cost of
// containers/storage alone, with a record and a template, is in the same run.
func BenchmarkContainer(b *testing.B) {
	for _, n := range []int{1, 200} {
		p, pod := benchStore(b, n)
		b.Run(fmt.Sprintf("CreateFinishRemove/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c, err := p.Create(b.Context(), p.member(pod, "new"), someSpec())
				if err != nil {
					b.Fatal(err)
				}
				if _, err := p.Finish(b.Context(), c.ID, nil); err != nil {
					b.Fatal(err)
				}
				if err := p.Remove(b.Context(), c.ID); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("StorageAlone/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				id := NewID()
				_, err := p.store.CreateContainer(id, []string{"new"}, p.record.StorageID.String(), "", "{}", &storage.ContainerOptions{Volatile: true})
				if err != nil {
					b.Fatal(err)
				}
				if err := p.store.SetContainerDirectoryFile(id, templateName, []byte("{}")); err != nil {
					b.Fatal(err)
				}
				if err := p.store.SetContainerRunDirectoryFile(id, templateName, []byte("{}")); err != nil {
					b.Fatal(err)
				}
				if err := p.store.DeleteContainer(id); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("Update/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := p.Update(b.Context(), pod.ID, func(c *Container) { c.State.ExitCode++ }); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("List/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if list, err := p.List(b.Context()); err != nil || len(list) != n {
					b.Fatal(len(list), err)
				}
			}
		})
	}
}
