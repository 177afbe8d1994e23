package podrun

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A FIFO whose last writer has gone before its reader comes keeps that waiting for ever
// (fifo(7)). containerd's shims open their end in the background, after Start has returned.

// holdOpen opens a FIFO for writing, so that its reader finds a writer whenever it comes.
func holdOpen(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0)
}

// awaitReader waits until another process reads a FIFO.
func awaitReader(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	want, err := os.Stat(path)
	if err != nil {
		return err
	}
	for {
		fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
		if err != nil {
			return err
		}
		for _, fd := range fds {
			if readsFrom(fd, want) {
				return nil
			}
		}
		if err := pauseFor(ctx, emptyPoll); err != nil {
			return fmt.Errorf("wait for a reader of %s: %w", path, err)
		}
	}
}

// readsFrom says whether /proc/PID/fd/N, of another process, is open to read that file.
func readsFrom(fd string, want os.FileInfo) bool {
	parts := strings.Split(fd, "/")
	if parts[2] == strconv.Itoa(os.Getpid()) || !ours(filepath.Join("/proc", parts[2])) {
		return false
	}
	if link, err := os.Readlink(fd); err != nil || filepath.Base(link) != want.Name() {
		return false
	}
	is, err := os.Stat(fd)
	if err != nil || !os.SameFile(is, want) {
		return false
	}
	info, err := os.ReadFile(filepath.Join("/proc", parts[2], "fdinfo", parts[4]))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(info)) {
		if value, ok := strings.CutPrefix(line, "flags:"); ok {
			flags, err := strconv.ParseUint(strings.TrimSpace(value), 8, 64)
			return err == nil && flags&unix.O_ACCMODE == unix.O_RDONLY && flags&unix.O_PATH == 0
		}
	}
	return false
}
