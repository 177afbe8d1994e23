// Package bundle makes OCI bundles in a guest: an overlay of an image's layers at
// <bundle>/rootfs and a config.json.
//
// What a bundle needs beside its own directory is in a state directory per bundle:
//
//	lock            flock(2): held while bundles are made, swept or released
//	<key>/          one bundle; the key is a hash of its path
//	  record.json   which bundle
//	  upper, work   overlayfs's directories: what the container writes
//	  links         names of the layers, short enough for mount(2)
//	  complete      empty; it exists when the bundle was finished
//
// A process that dies in between leaves a directory without "complete"; the next one
// takes that bundle back. One that dies later leaves a bundle that works on: its mount
// tells whether it is still needed, in whichever mount namespace that is.
package bundle

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/errdefs"
)

const (
	configFile = "config.json"
	rootfsDir  = "rootfs"

	recordFile   = "record.json"
	completeFile = "complete"
	lockFile     = "lock"

	// maxBundles bounds the bundles of a guest, each a mount and a directory tree: a
	// caller that never removes any must not fill the guest.
	maxBundles = 1024
	// maxPath is the kernel's limit, less what is put behind a bundle's path.
	maxPath = 4096 - 64
	// maxRecord bounds a record that is read back: a path and an image's name.
	maxRecord = 16 << 10
	// lockPoll is how long to wait between two tries for the lock, which flock(2) does
	// not wait for together with a context. It is held for milliseconds.
	lockPoll = 10 * time.Millisecond
)

// Keeper makes bundles and knows those that it made.
type Keeper struct {
	dir     string
	parent  string
	outside []string
}

// Layers is what a rootfs is made of.
type Layers struct {
	// Image names it in the records: a reference.
	Image string
	// Dirs are absolute paths, the lowest first; none is an empty rootfs.
	Dirs []string
	// RootDir gives "/" its mode and owner; "" is 0755 and root.
	RootDir string
}

// Open returns the keeper whose state is in dir. Bundles are made below parent only, and
// never inside a directory of outside, such as the layer store. [Keeper.Sweep] should
// follow.
func Open(dir, parent string, outside ...string) (*Keeper, error) {
	const op = "open bundles"
	for _, path := range []string{dir, parent} {
		// The characters that mean something in the options of an overlay mount.
		if !filepath.IsAbs(path) || filepath.Clean(path) != path || strings.ContainsAny(path, ":,\\= \t\n") {
			return nil, errdefs.Newf(errdefs.InvalidArgument, op, "%q is not an absolute, clean path without special characters", path)
		}
		if err := os.MkdirAll(path, 0o700); err != nil {
			return nil, errdefs.New(errdefs.Internal, op, err)
		}
	}
	return &Keeper{dir: dir, parent: parent, outside: append([]string{dir}, outside...)}, nil
}

// record is the JSON form of a bundle.
type record struct {
	Bundle string `json:"bundle"`
	Image  string `json:"image"`
	// MadeBundle and MadeRootfs say which directories were not there before.
	MadeBundle bool `json:"made_bundle"`
	MadeRootfs bool `json:"made_rootfs"`
}

// Check reports whether a bundle could be made at path: InvalidArgument for a path that
// is not allowed, InUse for one that has a config.json. It changes nothing.
func (k *Keeper) Check(path string) error {
	d, err := k.openDir(path, false)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer d.close()
	return d.free()
}

// Make mounts the layers at path/rootfs and writes what config returns to
// path/config.json. config gets a path at which the rootfs is while it runs. A bundle
// that cannot be finished is taken back; its errors are those of Check, of config, and
// Internal and TooLarge.
func (k *Keeper) Make(ctx context.Context, path string, layers Layers, config func(rootfs string) ([]byte, error)) (err error) {
	unlock, err := k.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	// A bundle that cannot be swept is no reason to refuse another; its own is refused
	// by begin.
	_ = k.sweep()
	d, err := k.openDir(path, true)
	if err != nil {
		return err
	}
	defer d.close()
	var undo undoStack
	defer func() { err = undo.end(err) }()
	if d.made {
		undo.add(d.removeDir)
	}
	if err := d.free(); err != nil {
		return err
	}
	if err := d.openRootfs(); err != nil {
		return err
	}
	if d.madeRootfs {
		undo.add(d.removeRootfs)
	}
	state := k.state(path)
	if err := state.begin(record{Bundle: path, Image: layers.Image, MadeBundle: d.made, MadeRootfs: d.madeRootfs}); err != nil {
		return err
	}
	undo.add(state.remove)
	if err := state.mount(layers, d.rootfs); err != nil {
		return err
	}
	undo.add(state.unmount)
	root, err := d.mounted()
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(root) }()
	data, err := config(fdPath(root))
	if err != nil {
		return err
	}
	if err := d.writeConfig(data); err != nil {
		return err
	}
	undo.add(d.removeConfig)
	return state.finish()
}

// state is the state directory of one bundle.
type state struct{ dir string }

func (k *Keeper) state(path string) state {
	sum := sha256.Sum256([]byte(path))
	return state{filepath.Join(k.dir, hex.EncodeToString(sum[:16]))}
}

func (s state) path(name string) string { return filepath.Join(s.dir, name) }

func (s state) begin(r record) error {
	const op = "begin bundle"
	entries, err := os.ReadDir(filepath.Dir(s.dir))
	if err != nil {
		return errdefs.New(errdefs.Internal, op, err)
	}
	if len(entries) > maxBundles {
		return errdefs.Newf(errdefs.TooLarge, op, "over %d bundles", maxBundles)
	}
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		if errors.Is(err, os.ErrExist) { // what the sweep has left is in use
			return errdefs.Newf(errdefs.InUse, op, "the root file system of an earlier container is still mounted")
		}
		return errdefs.New(errdefs.Internal, op, err)
	}
	data, err := json.Marshal(r)
	if err == nil {
		err = os.WriteFile(s.path(recordFile), data, 0o600)
	}
	if err != nil {
		return errdefs.New(errdefs.Internal, op, errors.Join(err, os.RemoveAll(s.dir)))
	}
	return nil
}

func (s state) finish() error {
	if err := os.WriteFile(s.path(completeFile), nil, 0o600); err != nil {
		return errdefs.New(errdefs.Internal, "finish bundle", err)
	}
	return nil
}

func (s state) complete() bool {
	_, err := os.Lstat(s.path(completeFile))
	return err == nil
}

func (s state) read() (r record, err error) {
	info, err := os.Lstat(s.path(recordFile))
	if err != nil {
		return r, err
	}
	if info.Size() > maxRecord {
		return r, fmt.Errorf("%s: %d bytes", recordFile, info.Size())
	}
	data, err := os.ReadFile(s.path(recordFile))
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(data, &r)
}

func (s state) remove() error { return os.RemoveAll(s.dir) }

func (k *Keeper) lock(ctx context.Context) (unlock func(), err error) {
	const op = "lock bundles"
	f, err := os.OpenFile(filepath.Join(k.dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, errdefs.New(errdefs.Internal, op, err)
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil // and with it the lock
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			_ = f.Close()
			return nil, errdefs.New(errdefs.Internal, op, err)
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, errdefs.New(errdefs.KindOf(ctx.Err()), op, ctx.Err())
		case <-time.After(lockPoll):
		}
	}
}

// undoStack takes back what was done, the last first.
type undoStack []func() error

func (u *undoStack) add(fn func() error) { *u = append(*u, fn) }

// end runs the stack if err is not nil. What cannot be taken back is told with it.
func (u undoStack) end(err error) error {
	if err == nil {
		return nil
	}
	for i := len(u) - 1; i >= 0; i-- {
		if e := u[i](); e != nil {
			err = errdefs.New(errdefs.KindOf(err), "make bundle", errors.Join(err, fmt.Errorf("and take it back: %w", e)))
		}
	}
	return err
}
