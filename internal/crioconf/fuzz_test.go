package crioconf

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
)

// FuzzLoad reads a crio.conf and a drop-in. Whatever they hold, it does not panic, and
// what parses merges idempotently: a drop-in that is there twice says no more than once.
func FuzzLoad(f *testing.F) {
	seeds, err := filepath.Glob("testdata/*.conf")
	if err != nil || len(seeds) == 0 {
		f.Fatal("no seeds", err)
	}
	for _, a := range seeds {
		for _, b := range seeds {
			f.Add(read(f, a), read(f, b))
		}
	}
	f.Fuzz(func(t *testing.T, conf, dropIn []byte) {
		system := Storage{Root: "/var/lib/containers/storage", RunRoot: "/run", Driver: "overlay", Options: []string{"a", "b"}}
		once, err := merge([]source{{"crio.conf", conf}, {"1.conf", dropIn}}, system)
		if err != nil {
			return
		}
		if !slices.Equal(system.Options, []string{"a", "b"}) {
			t.Fatalf("the caller's options became %q", system.Options)
		}
		twice, err := merge([]source{{"crio.conf", conf}, {"1.conf", dropIn}, {"2.conf", dropIn}}, system)
		if err != nil {
			t.Fatalf("a drop-in that parses does not parse again: %v", err)
		}
		if diff := Diff(once, twice); len(diff) > 0 {
			t.Fatalf("merged twice, %q differ", diff)
		}
		once.Files, once.Origins, twice.Files, twice.Origins = nil, nil, nil, nil
		if !reflect.DeepEqual(once, twice) {
			t.Fatalf("merged once:\n%+v\nmerged twice:\n%+v", once, twice)
		}
		if once.DefaultRuntime == "" || once.Handlers == nil || once.GRPC.MaxRecvBytes <= 0 || once.GRPC.MaxSendBytes <= 0 {
			t.Fatalf("a zero that CRI-O does not have: %+v", once)
		}
		for _, name := range once.GuestPullHandlers() {
			if h := once.Handlers[name]; h.Type != "vm" || !h.PullImage {
				t.Fatalf("%q pulls in the guest: %+v", name, h)
			}
		}
	})
}

func read(f *testing.F, path string) []byte {
	data, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	return data
}
