package shim

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/log"

	"github.com/husk-cri/husk/internal/shim/pod"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// pidFile is what an OCI runtime writes into the bundle once it has created the
// container (containerd's pkg/process).
const pidFile = "init.pid"

// discardTimeout is how long an OCI runtime may take for [discard]: who waits for the
// creation, or for the pod's end, must not wait for a runtime that hangs.
const discardTimeout = 30 * time.Second

// discard deletes what an OCI runtime has made of a container whose creation failed, its
// processes and its cgroup. The creation fails after the runtime's own part, too: when a
// stream of the container's cannot be opened.
//
// The error is that of a runtime which cannot delete what it did create. One that did not
// get so far cleans up itself, and if it cannot be run there is nothing of it: a record
// for that would keep a pod that never was.
func discard(ctx context.Context, r pod.Record) error {
	// A client that goes away must not leave it behind.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), discardTimeout)
	defer cancel()
	// The runtime would make its directory, for ever, only to find nothing in it.
	if _, err := os.Stat(r.RuntimeRoot); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if !owns(ctx, r) {
		return nil
	}
	_, err := call(ctx, r.Runtime, "--root", r.RuntimeRoot, "delete", "--force", r.ID)
	if err == nil {
		return nil
	}
	if _, statErr := os.Stat(filepath.Join(r.Bundle, pidFile)); errors.Is(statErr, fs.ErrNotExist) {
		log.G(ctx).WithError(err).Warn("clean up after an OCI runtime that failed")
		return nil
	}
	return errdefs.New(errdefs.Internal, "delete what is left of container "+r.ID, err)
}

// owns is false for a container of another bundle: the runtime refuses to create one of
// an ID that is taken, and whoever has it, in another pod, keeps it. What the runtime
// does not know, or not well enough to say its bundle, is the record's.
func owns(ctx context.Context, r pod.Record) bool {
	data, err := call(ctx, r.Runtime, "--root", r.RuntimeRoot, "state", r.ID)
	var state struct {
		Bundle string `json:"bundle"`
	}
	if err != nil || json.Unmarshal(data, &state) != nil || state.Bundle == "" || state.Bundle == r.Bundle {
		return true
	}
	own, err := os.Stat(r.Bundle)
	if err != nil {
		return false
	}
	theirs, err := os.Stat(state.Bundle) // some runtimes resolve links in it
	return err == nil && os.SameFile(own, theirs)
}
