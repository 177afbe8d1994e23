package podnet

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// The host's list of name servers. Where systemd-resolved runs, the first names only its
// stub on the loopback interface, and no pod reaches that: its own list is the other
// (kubeadm has kubelet use it too).
const (
	hostResolvConf     = "/etc/resolv.conf"
	resolvedResolvConf = "/run/systemd/resolve/resolv.conf"
)

const (
	// maxHostname is the kernel's limit (HOST_NAME_MAX).
	maxHostname = 64
	// maxIPs bounds what a plugin has answered; a pod has two.
	maxIPs = 64
	// maxResolvConf keeps a file that is there by accident out of the memory, and out of
	// each container's directory.
	maxResolvConf = 64 << 10
)

// FilesConfig says what is in the files by which a container knows its names.
type FilesConfig struct {
	// Hostname is the pod's; it must be one by RFC 1123 and of at most 64 bytes. Empty:
	// the files name none.
	Hostname string
	// IPs are the pod's addresses, which Hostname stands for in the hosts file. None:
	// 127.0.0.1 does.
	IPs []netip.Addr
	// ResolvConf is the path of the file to copy as it is. Empty: the host's, for a network
	// namespace of its own: without a stub that only the host reaches.
	ResolvConf string
}

// Files are the paths of what [WriteFiles] wrote.
type Files struct {
	Hosts, Hostname, ResolvConf string
}

// WriteFiles writes hosts, hostname and resolv.conf in dir, which must exist. Each
// is there whole or not at all, and replaces one of that name. A host name that is none
// or an address that is none is errdefs.InvalidArgument, and nothing is written then.
func WriteFiles(dir string, cfg FilesConfig) (Files, error) {
	const op = "write the pod's hosts, hostname and resolv.conf"
	if err := cfg.check(); err != nil {
		return Files{}, errdefs.New(errdefs.InvalidArgument, op, err)
	}
	resolv, err := cfg.resolvConf(hostResolvConf, resolvedResolvConf)
	if err != nil {
		return Files{}, errdefs.New(errdefs.Internal, op, err)
	}
	files := Files{
		Hosts: filepath.Join(dir, "hosts"), Hostname: filepath.Join(dir, "hostname"), ResolvConf: filepath.Join(dir, "resolv.conf"),
	}
	hostname := ""
	if cfg.Hostname != "" {
		hostname = cfg.Hostname + "\n"
	}
	for _, file := range []struct {
		path string
		data []byte
	}{{files.Hosts, cfg.hosts()}, {files.Hostname, []byte(hostname)}, {files.ResolvConf, resolv}} {
		if err := writeWhole(file.path, file.data); err != nil {
			return Files{}, errdefs.New(errdefs.Internal, op, err)
		}
	}
	return files, nil
}

func (cfg FilesConfig) check() error {
	if cfg.Hostname != "" && (len(cfg.Hostname) > maxHostname || !hostname().MatchString(cfg.Hostname)) {
		return fmt.Errorf("%.80q is no host name: labels of letters, digits and '-', joined by '.', %d bytes in all", cfg.Hostname, maxHostname)
	}
	if len(cfg.IPs) > maxIPs {
		return fmt.Errorf("%d addresses are more than %d", len(cfg.IPs), maxIPs)
	}
	if !slices.ContainsFunc(cfg.IPs, func(ip netip.Addr) bool { return !ip.IsValid() }) {
		return nil
	}
	return errors.New("an address is none")
}

func hostname() *regexp.Regexp {
	const label = `[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?`
	return regexp.MustCompile(`^` + label + `(\.` + label + `)*$`)
}

// hosts is the text of the hosts file: kubelet's, with the pod's own name.
func (cfg FilesConfig) hosts() []byte {
	var b bytes.Buffer
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	if cfg.Hostname == "" {
		return b.Bytes()
	}
	names := cfg.Hostname
	if first, _, dotted := strings.Cut(names, "."); dotted {
		names += " " + first
	}
	ips := cfg.IPs
	if len(ips) == 0 {
		ips = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	}
	for _, ip := range ips {
		fmt.Fprintf(&b, "%s\t%s\n", ip.Unmap().WithZone(""), names)
	}
	return b.Bytes()
}

// resolvConf is the text to copy. host is the host's file, resolved systemd-resolved's.
// A host without the file asks itself, and so does a container with an empty one.
func (cfg FilesConfig) resolvConf(host, resolved string) ([]byte, error) {
	if cfg.ResolvConf != "" {
		return readAtMost(cfg.ResolvConf, maxResolvConf)
	}
	data, err := readAtMost(host, maxResolvConf)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil || !onlyLoopback(data) {
		return data, err
	}
	real, err := readAtMost(resolved, maxResolvConf)
	if errors.Is(err, fs.ErrNotExist) {
		return data, nil
	}
	return real, err
}

// onlyLoopback reports whether every name server in a resolv.conf is on the loopback
// interface.
func onlyLoopback(data []byte) bool {
	servers := 0
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		servers++
		if ip, err := netip.ParseAddr(fields[1]); err != nil || !ip.Unmap().IsLoopback() {
			return false
		}
	}
	return servers > 0
}

// readAtMost reads a file, and fails if it is longer. It waits for nobody: neither does
// the opening of a FIFO.
func readAtMost(path string, most int64) (data []byte, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(err, fmt.Errorf("%s is no regular file", path))
	}
	data, err = io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(data)) > most {
		return nil, fmt.Errorf("%s is longer than %d bytes", path, most)
	}
	return data, err
}

// writeWhole writes a file that containers can read, and then gives it its name. Nothing
// that stands under the name is followed or opened.
func writeWhole(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
