package bundlegen

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"slices"
	"syscall"

	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// The files of a bundle.
const (
	configName = "config.json"
	rootfsName = "rootfs"
	// partialName is config.json before it is complete.
	partialName = ".config.json.partial"
)

// The modes of what is made, whatever the umask is.
const (
	bundleMode = 0o755
	// configMode: the environment of a container often has secrets.
	configMode = 0o600
	rootfsMode = 0o755
)

// WriteBundle makes dir, or takes it when it is empty, and writes spec as config.json and an
// empty rootfs there. config.json comes last and in one piece: a writer that is killed
// leaves no bundle, and what it does leave the next one takes for nothing. A failed write
// leaves the directory as it was, or none. Its errors are those of [Validate], and
// InvalidArgument for a dir that something is in, that another writer is at, or that cannot
// be a directory.
func WriteBundle(dir string, spec *rspec.Spec) (err error) {
	op := "write bundle " + dir
	if err := Validate(spec); err != nil {
		return err
	}
	w, err := openBundle(dir)
	if err != nil {
		return errdefs.New(kindOfPath(err), op, err)
	}
	defer func() {
		if err = errors.Join(err, w.close(err != nil)); err != nil {
			err = errdefs.New(kindOfPath(err), op, err)
		}
	}()
	for _, step := range w.steps(spec) {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// kindOfPath is InvalidArgument where another dir would do.
func kindOfPath(err error) errdefs.Kind {
	for _, target := range []error{
		fs.ErrNotExist, fs.ErrExist, syscall.ENOTDIR, syscall.ENOTEMPTY, syscall.ELOOP, syscall.ENAMETOOLONG, syscall.EWOULDBLOCK,
	} {
		if errors.Is(err, target) {
			return errdefs.InvalidArgument
		}
	}
	return errdefs.KindOf(err)
}

// bundleWriter is a directory that is becoming a bundle.
type bundleWriter struct {
	path string
	lock *os.File
	root *os.Root
	// made are the names in it that this writer made; "." is the directory itself.
	made []string
}

// openBundle makes dir unless it is there, and locks it.
func openBundle(dir string) (*bundleWriter, error) {
	w := &bundleWriter{path: dir}
	err := os.Mkdir(dir, bundleMode)
	switch {
	case err == nil:
		w.made = append(w.made, ".")
		err = os.Chmod(dir, bundleMode)
	case errors.Is(err, fs.ErrExist):
		err = isDirectory(dir)
	}
	if err == nil {
		w.root, err = os.OpenRoot(dir)
	}
	if err == nil {
		w.lock, err = w.root.Open(".")
	}
	if err != nil {
		return nil, errors.Join(err, w.close(true))
	}
	if err := syscall.Flock(int(w.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(err, w.close(false)) // what is in it is another writer's
	}
	return w, nil
}

// isDirectory spares [os.OpenRoot] what it would wait for, or fail at in its own words.
func isDirectory(dir string) error {
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		err = &fs.PathError{Op: "use", Path: dir, Err: syscall.ENOTDIR}
	}
	return err
}

// close ends the writing; undo takes back what was made.
func (w *bundleWriter) close(undo bool) error {
	var errs []error
	if undo {
		for _, name := range slices.Backward(w.made) {
			if name == "." {
				errs = append(errs, os.Remove(w.path))
			} else {
				errs = append(errs, w.root.Remove(name))
			}
		}
	}
	if w.lock != nil {
		errs = append(errs, w.lock.Close())
	}
	if w.root != nil {
		errs = append(errs, w.root.Close())
	}
	return errors.Join(errs...)
}

// steps make the bundle, in order. A writer that is killed before publish is done has left
// nothing that a runtime would take for a bundle, and after it a whole one.
func (w *bundleWriter) steps(spec *rspec.Spec) []func() error {
	return []func() error{
		w.check,
		func() error { return w.stage(spec) },
		w.makeRootfs,
		w.publish,
		w.lock.Sync,
	}
}

// check refuses a directory with anything in it but what a killed writer leaves.
func (w *bundleWriter) check() error {
	entries, err := fs.ReadDir(w.root.FS(), ".")
	if err != nil {
		return err
	}
	for _, e := range entries {
		switch {
		case e.Name() == partialName && e.Type().IsRegular():
			continue
		case e.Name() == rootfsName && e.IsDir():
			below, err := fs.ReadDir(w.root.FS(), rootfsName)
			if err != nil {
				return err
			}
			if len(below) == 0 {
				continue
			}
		}
		return &fs.PathError{Op: "use", Path: w.path, Err: syscall.ENOTEMPTY}
	}
	return nil
}

// stage writes the config under a name that no runtime reads.
func (w *bundleWriter) stage(spec *rspec.Spec) (err error) {
	data, err := json.MarshalIndent(spec, "", "\t") // as the generator saves it
	if err != nil {
		return err
	}
	if err := w.root.Remove(partialName); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := w.root.OpenFile(partialName, os.O_WRONLY|os.O_CREATE|os.O_EXCL, configMode)
	if err != nil {
		return err
	}
	w.made = append(w.made, partialName)
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Chmod(configMode); err != nil {
		return err
	}
	if _, err := f.Write(append(data, '\n')); err != nil {
		return err
	}
	return f.Sync()
}

func (w *bundleWriter) makeRootfs() error {
	switch err := w.root.Mkdir(rootfsName, rootfsMode); {
	case err == nil:
		w.made = append(w.made, rootfsName)
	case !errors.Is(err, fs.ErrExist):
		return err
	}
	return w.root.Chmod(rootfsName, rootfsMode)
}

func (w *bundleWriter) publish() error {
	if err := w.root.Rename(partialName, configName); err != nil {
		return err
	}
	w.made[slices.Index(w.made, partialName)] = configName
	return nil
}
