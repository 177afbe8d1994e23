package main

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/husk-cri/husk/bundlegen/bundles"
	"github.com/husk-cri/husk/internal/crioconf"
	"github.com/husk-cri/husk/pkg/errdefs"
)

const (
	// runtimeVM is the type of CRI-O's handlers that are a shim v2.
	runtimeVM = "vm"
	// shimConfig is the configuration of Husk's shim where no handler names another.
	shimConfig = "/etc/husk/shim.toml"
	localBin   = "/usr/local/bin"
	kataBin    = "/opt/kata/bin"
)

// runtimeOf finds the shim that --runtime names: a path, a handler of crio.conf, or a
// binary containerd-shim-NAME-v2.
func runtimeOf(name, configPath string, handlers map[string]crioconf.Handler) (bundles.Runtime, error) {
	op := "find runtime " + name
	r := bundles.Runtime{Name: name, ConfigPath: configPath}
	h, configured := handlers[name]
	switch {
	case strings.Contains(name, "/"):
		path, err := filepath.Abs(name)
		if err != nil {
			return r, errdefs.New(errdefs.InvalidArgument, op, err)
		}
		if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
			return r, errdefs.Newf(errdefs.NotFound, op, "there is no such program")
		}
		r.Path = path
	case configured && h.Type == runtimeVM:
		r.Path = h.Path
		if configPath == "" {
			r.ConfigPath = h.ConfigPath
		}
	case configured:
		return r, errdefs.Newf(errdefs.Unsupported, op, "it is an OCI runtime, not a shim: an image's layers would have to be pulled by the host")
	default:
		path, err := findShim("containerd-shim-" + name + "-v2")
		if err != nil {
			return r, errdefs.New(errdefs.NotFound, op, err)
		}
		r.Path = path
	}
	if r.ConfigPath == "" && (crioconf.Handler{Path: r.Path}).ResolvesNames() {
		if _, err := os.Stat(shimConfig); err == nil {
			r.ConfigPath = shimConfig
		}
	}
	if r.ConfigPath == "" {
		return r, nil
	}
	path, err := filepath.Abs(r.ConfigPath)
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		return r, errdefs.New(errdefs.NotFound, op+": its configuration", err)
	}
	r.ConfigPath = path
	return r, nil
}

// findShim looks for a shim beside husk, where packages put it, and in PATH.
func findShim(binary string) (string, error) {
	dirs := []string{localBin, kataBin}
	if self, err := os.Executable(); err == nil {
		dirs = append([]string{filepath.Dir(self)}, dirs...)
	}
	for _, dir := range dirs {
		path, err := exec.LookPath(filepath.Join(dir, binary))
		if err == nil {
			return path, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	path, err := exec.LookPath(binary)
	if err != nil {
		return "", errors.New(binary + " is neither a handler of crio.conf, nor beside husk, in " + strings.Join(dirs[len(dirs)-2:], ", ") + " or in PATH")
	}
	return filepath.Abs(path)
}
