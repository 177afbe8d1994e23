// Package build makes the binaries of the node under test once and keeps them in a cache folder.
package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	testnode "github.com/husk-cri/husk/test/node"
)

// crioTags are CRI-O's build tags: what a Debian 12 machine has libraries for, with seccomp.
const crioTags = "containers_image_ostree_stub exclude_graphdriver_btrfs btrfs_noversion seccomp"

const crioModule = "github.com/cri-o/cri-o"

// Binaries are the paths of what was built.
type Binaries struct {
	CRIO  string `json:"crio"`
	Pinns string `json:"pinns"`
	Pause string `json:"pause"`
}

// Dir is the folder of the cache that holds this module's binaries. Its name changes with every pinned version,
// the tags, the pause source and the Go version.
func Dir(cache string) (string, error) {
	h := sha256.New()
	for _, f := range []string{"go.mod", "go.sum", "pause/pause.c"} {
		b, err := testnode.Files.ReadFile(f)
		if err != nil {
			return "", fmt.Errorf("read embedded %s: %w", f, err)
		}
		h.Write(fmt.Appendf(nil, "%s %d\n%s", f, len(b), b))
	}
	h.Write(fmt.Appendf(nil, "%s %s %s", crioTags, runtime.Version(), runtime.GOARCH))
	return filepath.Join(cache, hex.EncodeToString(h.Sum(nil))[:16]), nil
}

// Build returns the binaries, building them first if the cache does not have them. Builders of the same cache
// wait for each other. Progress and the compilers' output go to progress.
func Build(ctx context.Context, cache string, progress io.Writer) (_ Binaries, err error) {
	dir, err := Dir(cache)
	if err != nil {
		return Binaries{}, err
	}
	bins := Binaries{CRIO: filepath.Join(dir, "crio"), Pinns: filepath.Join(dir, "pinns"), Pause: filepath.Join(dir, "pause")}
	if exists(dir) {
		return bins, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return Binaries{}, fmt.Errorf("make cache: %w", err)
	}
	unlock, err := lock(dir + ".lock")
	if err != nil {
		return Binaries{}, err
	}
	defer unlock()
	if exists(dir) { // another builder was first
		return bins, nil
	}
	tmp, err := os.MkdirTemp(cache, ".build-")
	if err != nil {
		return Binaries{}, fmt.Errorf("make build folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	out := filepath.Join(tmp, "out")
	if err := all(ctx, tmp, out, progress); err != nil {
		return Binaries{}, err
	}
	if err := os.Rename(out, dir); err != nil {
		return Binaries{}, fmt.Errorf("put binaries in place: %w", err)
	}
	return bins, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	return func() { _ = f.Close() }, nil // closing unlocks
}

// all builds everything into out. The go command runs in a copy of this module's go.mod and go.sum, which is all
// that it needs and is there even when the module's source is not.
func all(ctx context.Context, tmp, out string, progress io.Writer) error {
	module := filepath.Join(tmp, "module")
	for _, d := range []string{module, out} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return fmt.Errorf("make build folder: %w", err)
		}
	}
	for _, f := range []string{"go.mod", "go.sum", "pause/pause.c"} {
		b, err := fs.ReadFile(testnode.Files, f)
		if err != nil {
			return fmt.Errorf("read embedded %s: %w", f, err)
		}
		if err := os.WriteFile(filepath.Join(module, filepath.Base(f)), b, 0o644); err != nil {
			return fmt.Errorf("write module: %w", err)
		}
	}
	b := builder{dir: module, progress: progress}
	if _, err := b.run(ctx, "go", "build", "-tags", crioTags, "-ldflags", "-s -w", "-o", filepath.Join(out, "crio"), crioModule+"/cmd/crio"); err != nil {
		return err
	}
	source, err := b.run(ctx, "go", "list", "-m", "-f", "{{.Dir}}", crioModule)
	if err != nil {
		return err
	}
	pinns, err := filepath.Glob(filepath.Join(strings.TrimSpace(source), "pinns", "src", "*.c"))
	if err != nil || len(pinns) == 0 {
		return fmt.Errorf("no pinns source in %s: %w", source, errors.Join(err, fs.ErrNotExist))
	}
	cc := []string{"-std=c99", "-Os", "-Wall", "-Wextra", "-static", "-s", "-o"}
	if _, err := b.run(ctx, "gcc", append(append(cc, filepath.Join(out, "pinns")), pinns...)...); err != nil {
		return err
	}
	_, err = b.run(ctx, "gcc", "-std=gnu99", "-Os", "-Wall", "-Wextra", "-static", "-s", "-o", filepath.Join(out, "pause"), "pause.c")
	return err
}

type builder struct {
	dir      string
	progress io.Writer
}

func (b builder) run(ctx context.Context, name string, args ...string) (stdout string, err error) {
	if _, err := fmt.Fprintf(b.progress, "testnode: %s %s\n", name, strings.Join(args, " ")); err != nil {
		return "", fmt.Errorf("report progress: %w", err)
	}
	var out strings.Builder
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = b.dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1", "GOWORK=off", "GOFLAGS=-mod=readonly -buildvcs=false")
	cmd.Stdout = &out
	cmd.Stderr = b.progress
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w", name, args[0], err)
	}
	return out.String(), nil
}
