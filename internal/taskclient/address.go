package taskclient

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/errdefs"
)

const (
	// addressFile is where a shim leaves its address for those who come later.
	addressFile = "address"
	scheme      = "unix://"
	// apiVersion is the version of the task API that is spoken here.
	apiVersion = 2
)

// bootstrap is what the shims of containerd 2 print.
type bootstrap struct {
	Version  int    `json:"version"`
	Address  string `json:"address"`
	Protocol string `json:"protocol"`
}

// Address returns the address that the shim of a container left in its bundle. NotFound
// when it left none.
func Address(bundle string) (string, error) {
	op := "find the shim of " + bundle
	// Whoever wrote the file: no FIFO or device is waited for.
	f, err := os.OpenFile(filepath.Join(bundle, addressFile), os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return "", errdefs.New(errdefs.NotFound, op, err)
	}
	if err != nil {
		return "", errdefs.New(errdefs.Internal, op, err)
	}
	defer func() { _ = f.Close() }() // read only
	info, err := f.Stat()
	if err != nil {
		return "", errdefs.New(errdefs.Internal, op, err)
	}
	if !info.Mode().IsRegular() {
		return "", errdefs.Newf(errdefs.Internal, op, "%s is not a file", f.Name())
	}
	data, err := io.ReadAll(io.LimitReader(f, maxPrinted+1))
	if err != nil {
		return "", errdefs.New(errdefs.Internal, op, err)
	}
	if len(data) > maxPrinted {
		return "", errdefs.Newf(errdefs.TooLarge, op, "%s has more than %d bytes", f.Name(), maxPrinted)
	}
	address, err := parseAddress(data)
	if err != nil {
		return "", errdefs.New(errdefs.KindOf(err), op, err)
	}
	return address, nil
}

// parseAddress reads what a shim prints: its address, or the JSON of containerd 2.
func parseAddress(printed []byte) (string, error) {
	const op = "read its address"
	text := string(bytes.TrimSpace(printed))
	if text == "" {
		return "", errdefs.Newf(errdefs.Internal, op, "it printed none")
	}
	if strings.HasPrefix(text, "{") {
		var b bootstrap
		if err := json.Unmarshal([]byte(text), &b); err != nil {
			return "", errdefs.Newf(errdefs.Internal, op, "it printed %q: %w", line(text, maxText), err)
		}
		if b.Version != apiVersion {
			return "", errdefs.Newf(errdefs.Unsupported, op, "it speaks version %d of the task API, not %d", b.Version, apiVersion)
		}
		if !strings.EqualFold(b.Protocol, "ttrpc") {
			return "", errdefs.Newf(errdefs.Unsupported, op, "it speaks %q, not ttrpc", line(b.Protocol, maxText))
		}
		text = b.Address
	}
	if _, err := socketPath(text); err != nil {
		return "", err
	}
	return text, nil
}

// socketPath is the path of the socket at an address.
func socketPath(address string) (string, error) {
	const op = "read its address"
	path, ok := strings.CutPrefix(address, scheme)
	switch {
	case line(address, maxPrinted) != address:
		return "", errdefs.Newf(errdefs.Internal, op, "%q is no address", line(address, maxText))
	case !ok:
		return "", errdefs.Newf(errdefs.Unsupported, op, "%q is not on a unix socket (%s/PATH)", line(address, maxText), scheme)
	case !filepath.IsAbs(path):
		return "", errdefs.Newf(errdefs.Internal, op, "%q has no absolute path", line(address, maxText))
	case len(path) >= len(unix.RawSockaddrUnix{}.Path):
		return "", errdefs.Newf(errdefs.Internal, op, "the path of a socket has at most %d bytes, not %d", len(unix.RawSockaddrUnix{}.Path)-1, len(path))
	}
	return path, nil
}
