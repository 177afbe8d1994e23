// Command bundlectl keeps containers in a node's storage, as husk run does, and starts
// none. It prints JSON.
//
//	bundlectl --root DIR --runroot DIR pod NAME RECORD...   makes a pod with a container NAME-0... of each image record
//	bundlectl ... list|check|sweep                          prints what there is
//	bundlectl ... finish ID|remove ID                       makes a bundle and prints its path; removes a container
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/husk-cri/husk/bundlegen/bundles"
	"github.com/husk-cri/husk/pkg/imageref"
	"github.com/husk-cri/husk/test/internal/rig"
)

// callTimeout bounds one run: a few writes.
const callTimeout = time.Minute

func main() {
	rig.Main("bundlectl", callTimeout, func(ctx context.Context, args []string) error { return run(ctx, args, os.Stdout) })
}

func run(ctx context.Context, args []string, out io.Writer) error {
	opts := bundles.Options{Driver: "overlay"}
	flags := flag.NewFlagSet("bundlectl", flag.ContinueOnError)
	flags.StringVar(&opts.GraphRoot, "root", "", "CRI-O's root `directory`")
	flags.StringVar(&opts.RunRoot, "runroot", "", "CRI-O's runroot `directory`")
	if err := flags.Parse(args); err != nil {
		return err
	}
	store, err := bundles.Open(opts)
	if err != nil {
		return err
	}
	answer, err := do(ctx, store, flags.Arg(0), flags.Args()[min(1, flags.NArg()):])
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(answer)
}

func do(ctx context.Context, store *bundles.Store, verb string, args []string) (any, error) {
	switch {
	case verb == "pod" && len(args) > 0:
		return pod(ctx, store, args[0], args[1:])
	case verb == "list":
		return store.List(ctx)
	case verb == "check":
		return store.Check(ctx)
	case verb == "sweep":
		return store.Sweep(ctx)
	case verb == "finish" && len(args) == 1:
		return store.Finish(ctx, args[0], nil)
	case verb == "remove" && len(args) == 1:
		return "", store.Remove(ctx, args[0])
	}
	return nil, errors.New("say pod NAME RECORD..., list, check, sweep, finish ID or remove ID")
}

// pod makes a pod and its containers, and returns them.
func pod(ctx context.Context, store *bundles.Store, name string, records []string) ([]bundles.Container, error) {
	spec := &rspec.Spec{
		Version: rspec.Version, Root: &rspec.Root{Path: "rootfs"},
		Process: &rspec.Process{Args: []string{"/bin/true"}, Cwd: "/"},
	}
	id := bundles.NewID()
	sandbox := bundles.Container{ID: id, Name: name, Sandbox: true, Pod: bundles.Pod{ID: id, Name: name}}
	made, err := store.Create(ctx, sandbox, spec)
	if err != nil {
		return nil, err
	}
	list := []bundles.Container{made}
	for i, text := range records {
		record, err := imageref.ParseStorageID(text)
		if err != nil {
			return nil, err
		}
		c := bundles.Container{
			ID: bundles.NewID(), Name: fmt.Sprintf("%s-%d", name, i), Pod: made.Pod, Image: bundles.Image{RecordID: record},
		}
		if c, err = store.Create(ctx, c, spec); err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	return list, nil
}
