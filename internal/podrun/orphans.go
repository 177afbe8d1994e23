package podrun

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/internal/taskclient"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// A husk that is killed leaves the programs that it had just started: a shim's `start`, a
// CNI plugin. What they make after the cleaning up nobody would find.

// orphanTimeout is how long they are waited for. They are over within moments, or hang.
const orphanTimeout = 10 * time.Second

// awaitOrphans waits until no process matches.
func awaitOrphans(ctx context.Context, match func(proc string) bool) error {
	ctx, cancel := context.WithTimeout(ctx, orphanTimeout)
	defer cancel()
	for {
		entries, err := os.ReadDir("/proc")
		if err != nil {
			return err
		}
		left := slices.ContainsFunc(entries, func(e os.DirEntry) bool {
			_, err := strconv.Atoi(e.Name())
			proc := filepath.Join("/proc", e.Name())
			return err == nil && ours(proc) && match(proc)
		})
		if !left {
			return nil
		}
		if pauseFor(ctx, emptyPoll) != nil {
			return errdefs.Newf(errdefs.Unavailable, "wait for what a killed husk had started", "it still runs after %s", orphanTimeout)
		}
	}
}

// ours says whether a process may be one that a husk has started: it runs as the same user.
// What others say of themselves holds nothing up.
func ours(proc string) bool {
	var stat unix.Stat_t
	return unix.Stat(proc, &stat) == nil && stat.Uid == uint32(os.Geteuid())
}

// pluginOf matches the CNI plugins that are at work for a pod.
func pluginOf(podID string) func(string) bool {
	variable := []byte("CNI_CONTAINERID=" + podID)
	return func(proc string) bool {
		environ, err := os.ReadFile(filepath.Join(proc, "environ"))
		return err == nil && slices.ContainsFunc(bytes.Split(environ, []byte{0}), func(v []byte) bool { return bytes.Equal(v, variable) })
	}
}

// awaitShim connects to the shim that a bundle belongs to. Unavailable: there is none, and
// nobody is starting it either.
func awaitShim(ctx context.Context, bundle string) (shim *taskclient.Shim, err error) {
	dial := func() error {
		address, err := taskclient.Address(bundle)
		if errdefs.Is(err, errdefs.NotFound) {
			return errdefs.New(errdefs.Unavailable, "find the shim of "+bundle, err)
		}
		if err != nil {
			return err
		}
		shim, err = taskclient.Dial(ctx, address)
		return err
	}
	if err := dial(); !errdefs.Is(err, errdefs.Unavailable) {
		return shim, err
	}
	orphans := awaitOrphans(ctx, func(proc string) bool {
		cwd, err := os.Readlink(filepath.Join(proc, "cwd"))
		return err == nil && cwd == bundle && errdefs.Is(dial(), errdefs.Unavailable)
	})
	if orphans != nil {
		return nil, orphans
	}
	if shim != nil {
		return shim, nil
	}
	return shim, dial()
}
