package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	securejoin "github.com/cyphar/filepath-securejoin"
	"github.com/moby/sys/user"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
)

// sideOf reads a spec, and the root filesystem that it names.
func sideOf(data []byte, c combination) (side, error) {
	tree, err := decodeJSON(data)
	if err != nil {
		return side{}, err
	}
	var spec rspec.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		return side{}, err
	}
	s := side{spec: tree, rootfs: map[string]string{}}
	for _, at := range c.paths() {
		if s.rootfs[at], err = lookAt(spec.Root.Path, at); err != nil {
			return side{}, err
		}
	}
	s.home, err = homeOf(&spec)
	return s, err
}

// lookAt says what is at a path of a root filesystem.
func lookAt(rootfs, path string) (string, error) {
	path = filepath.Clean(path)
	at, err := securejoin.SecureJoin(rootfs, filepath.Dir(path))
	if err != nil {
		return "", err
	}
	at = filepath.Join(at, filepath.Base(path))
	info, err := os.Lstat(at)
	if errors.Is(err, fs.ErrNotExist) {
		return "nothing", nil
	}
	if err != nil {
		return "", err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		to, err := os.Readlink(at)
		return "link to " + to, err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return "", fmt.Errorf("no owner of %s", path)
	}
	return fmt.Sprintf("%s %d:%d", info.Mode(), owner.Uid, owner.Gid), nil
}

// homeOf is HOME of the process: what the spec says, or what runc sets when it starts it,
// by the same library (libcontainer/init_linux.go, setupUser).
func homeOf(spec *rspec.Spec) (string, error) {
	for _, entry := range spec.Process.Env {
		if home, ok := strings.CutPrefix(entry, "HOME="); ok && home != "" {
			return home, nil
		}
	}
	passwd, err := securejoin.SecureJoin(spec.Root.Path, "/etc/passwd")
	if err != nil {
		return "", err
	}
	for _, m := range spec.Mounts {
		if m.Destination == "/etc/passwd" { // CRI-O's, with an entry for a user that has none
			passwd = m.Source
		}
	}
	var file io.Reader
	if f, err := os.Open(passwd); err == nil {
		defer func() { _ = f.Close() }()
		file = f
	}
	found, err := user.GetExecUser(fmt.Sprint(spec.Process.User.UID), &user.ExecUser{Home: "/"}, file, nil)
	if err != nil {
		return "", fmt.Errorf("home of %d: %w", spec.Process.User.UID, err)
	}
	return found.Home, nil
}
