package layerpull

import (
	"errors"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// tree is the directory that one layer is unpacked into. No path of an archive
// is ever given to the kernel as a whole, save to openat2(2) that stays beneath
// the root and follows no link: directories are opened one component at a time,
// and everything else is done by a single name in an open directory. So there is
// no path that could lead out.
//
// Links on the way to an entry are followed as the container will see them, with
// the layer's root as "/".
type tree struct {
	// root removes whole directories.
	root *os.Root
	// open are the directories in use, by their path in the tree, which holds no
	// link. Consecutive entries are mostly in one directory.
	open map[string]*dir
}

// dir is an open directory. What is made in it changes its modification time,
// so the right one is kept here until it is closed.
type dir struct {
	fd    int
	path  string
	times []unix.Timespec // access, modification
}

const openDir = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC

func openTree(path string) (*tree, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	t := &tree{root: root, open: map[string]*dir{}}
	fd, err := unix.Open(path, openDir, 0)
	if err == nil {
		_, err = t.keep(fd, "")
	}
	if err != nil {
		_ = root.Close()
		return nil, err
	}
	return t, nil
}

// close gives the open directories their times and closes them.
func (t *tree) close() error {
	err := t.flush()
	if top := t.open[""]; top != nil {
		err = errors.Join(err, top.close())
	}
	return errors.Join(err, t.root.Close())
}

// flush closes all directories but the root.
func (t *tree) flush() error {
	var errs []error
	for name, d := range t.open {
		if name != "" {
			errs = append(errs, d.close())
			delete(t.open, name)
		}
	}
	return errors.Join(errs...)
}

func (d *dir) close() error {
	err := unix.UtimesNanoAt(d.fd, ".", d.times, 0)
	_ = unix.Close(d.fd)
	return err
}

// keep makes an open directory one of the tree's, which closes it.
func (t *tree) keep(fd int, name string) (*dir, error) {
	if d := t.open[name]; d != nil {
		_ = unix.Close(fd)
		return d, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	d := &dir{fd: fd, path: name, times: []unix.Timespec{st.Atim, st.Mtim}}
	t.open[name] = d
	return d, nil
}

// forget closes the directory with the given path and all beneath it: they are
// about to be removed.
func (t *tree) forget(name string) {
	for p, d := range t.open {
		if p == name || strings.HasPrefix(p, name+"/") {
			_ = unix.Close(d.fd)
			delete(t.open, p)
		}
	}
}

// dir opens the directory that name leads to. With make it makes what is
// missing on the way, with mode 0755, and replaces what is no directory.
func (t *tree) dir(name string, make bool) (*dir, error) {
	if d := t.open[name]; d != nil {
		return d, nil
	}
	fd, err := unix.Openat2(t.open[""].fd, name, &unix.OpenHow{
		Flags: openDir, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err == nil {
		return t.keep(fd, name)
	}
	// It has a link in it, is missing, or this kernel has no openat2.
	w := walk{make: make, levels: []level{{fd: t.open[""].fd}}}
	defer w.close()
	if err := w.run(name); err != nil {
		return nil, err
	}
	if len(w.levels) == 1 {
		return t.open[""], nil
	}
	return t.keep(w.take())
}

// remove removes whatever base is in d.
func (t *tree) remove(d *dir, base string) error {
	err := unix.Unlinkat(d.fd, base, 0)
	if !errors.Is(err, unix.EISDIR) {
		return err
	}
	name := path.Join(d.path, base)
	t.forget(name)
	return t.root.RemoveAll(name)
}

// place calls put, which makes base in d, and replaces what is there already.
func (t *tree) place(d *dir, base string, put func() error) error {
	err := put()
	if errors.Is(err, unix.EEXIST) {
		if err = t.remove(d, base); err == nil {
			err = put()
		}
	}
	return err
}

// level is a directory that a walk has entered.
type level struct {
	fd   int
	name string
}

// walk resolves a path one component at a time.
type walk struct {
	make   bool
	levels []level // the root first, which is not the walk's to close
	links  int
	steps  int
}

func (w *walk) close() {
	for len(w.levels) > 1 {
		w.up()
	}
}

func (w *walk) up() {
	if last := len(w.levels) - 1; last > 0 {
		_ = unix.Close(w.levels[last].fd)
		w.levels = w.levels[:last]
	}
}

// take hands the directory that was reached to the caller.
func (w *walk) take() (fd int, name string) {
	name = w.path()
	last := len(w.levels) - 1
	fd = w.levels[last].fd
	w.levels = w.levels[:last]
	return fd, name
}

func (w *walk) path() string {
	names := make([]string, 0, len(w.levels))
	for _, l := range w.levels[1:] {
		names = append(names, l.name)
	}
	return strings.Join(names, "/")
}

func (w *walk) run(name string) error {
	todo := strings.Split(name, "/")
	for len(todo) > 0 {
		part := todo[0]
		todo = todo[1:]
		if w.steps++; w.steps > maxWalkSteps || len(w.levels) > maxDepth {
			return errdefs.Newf(errdefs.TooLarge, "unpack", "a path leads through more than %d directories, or %d with its links", maxDepth, maxWalkSteps)
		}
		switch part {
		case "", ".":
			continue
		case "..":
			w.up()
			continue
		}
		target, err := w.enter(part)
		if err != nil {
			return err
		}
		if target == "" {
			continue
		}
		if w.links++; w.links > maxLinks {
			return unix.ELOOP
		}
		if strings.HasPrefix(target, "/") {
			w.close()
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	return nil
}

// enter goes down into the directory part, or returns the target of the link
// that it is.
func (w *walk) enter(part string) (target string, err error) {
	at := w.levels[len(w.levels)-1].fd
	fd, err := unix.Openat(at, part, openDir, 0)
	switch {
	case errors.Is(err, unix.ENOENT) && w.make:
		fd, err = makeParent(at, part)
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		var buf [maxNameBytes + 1]byte
		n, linkErr := unix.Readlinkat(at, part, buf[:])
		if linkErr == nil {
			return string(buf[:n]), nil
		}
		if !w.make {
			return "", unix.ENOTDIR
		}
		fd, err = replaceByDir(at, part)
	}
	if err != nil {
		return "", err
	}
	w.levels = append(w.levels, level{fd: fd, name: part})
	return "", nil
}

// makeParent makes a directory that has no entry (yet), whatever the umask, and
// leaves the times of the one it is in.
func makeParent(at int, name string) (int, error) {
	var st unix.Stat_t
	if err := unix.Fstat(at, &st); err != nil {
		return -1, err
	}
	if err := unix.Mkdirat(at, name, 0o755); err != nil {
		return -1, err
	}
	fd, err := unix.Openat(at, name, openDir, 0)
	if err != nil {
		return -1, err
	}
	if err = unix.Fchmod(fd, 0o755); err == nil {
		err = unix.UtimesNanoAt(at, ".", []unix.Timespec{st.Atim, st.Mtim}, 0)
	}
	if err != nil {
		_ = unix.Close(fd)
	}
	return fd, err
}

// replaceByDir puts a directory in the place of something that is none. In the
// place of a whiteout it is opaque: what the whiteout hid stays hidden.
func replaceByDir(at int, name string) (int, error) {
	hidden := isWhiteout(at, name)
	if err := unix.Unlinkat(at, name, 0); err != nil {
		return -1, err
	}
	fd, err := makeParent(at, name)
	if err == nil && hidden {
		err = setOpaque(fd)
	}
	return fd, err
}
