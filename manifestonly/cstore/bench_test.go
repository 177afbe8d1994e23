package cstore

import (
	"fmt"
	"testing"
	"time"

	"github.com/husk-cri/husk/manifestonly/storetest"
)

// benchRecords is how many records a large node has.
const benchRecords = 1000

// full makes a store with that many records, each with an index.
func full(b *testing.B) *Store {
	b.Helper()
	s, err := Open(Options{GraphRoot: b.TempDir(), RunRoot: b.TempDir(), Driver: "vfs"})
	if err != nil {
		b.Fatal(err)
	}
	for i := range benchRecords {
		put(b, s, i, time.Time{})
	}
	return s
}

func put(b *testing.B, s *Store, i int, at time.Time) {
	b.Helper()
	spec := storetest.Spec{Reference: fmt.Sprintf("registry.test/team/app-%d:v1", i), Salt: fmt.Sprint(i), Index: fmt.Sprint(i), Layers: 10, PulledAt: at}
	if _, err := s.Put(b.Context(), storetest.Make(b, spec)); err != nil {
		b.Fatal(err)
	}
}

func list(b *testing.B, s *Store) {
	b.Helper()
	records, err := s.List(b.Context())
	if err != nil || len(records) < benchRecords {
		b.Fatal(len(records), err)
	}
}

// BenchmarkRecords has the 1,000 records of a large node: what every question of
// kubelet costs, what the first one costs after another process changed the images,
// and what a pull costs.
func BenchmarkRecords(b *testing.B) {
	s := full(b)
	b.Run("List", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			list(b, s)
		}
	})
	b.Run("ListAfterAChange", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.cache.mu.Lock()
			s.cache.settled = false
			s.cache.mu.Unlock()
			list(b, s)
		}
	})
	b.Run("ListFirst", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.cache.forget()
			list(b, s)
		}
	})
	b.Run("PutAgain", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			put(b, s, i%benchRecords, time.Now().UTC())
		}
	})
	b.Run("PutNew", func(b *testing.B) {
		b.ReportAllocs()
		for i := benchRecords; b.Loop(); i++ {
			put(b, s, i, time.Time{})
		}
	})
}
