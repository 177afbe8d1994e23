// Package rig is a node under test as the demo and the benchmarks use it: the
// registry and the stock CRI-O of test/node, husk in front, and a CRI client. It
// drives the same binaries that a person would, and reads back only what
// registry, CRI-O and disk say.
package rig

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/husk-cri/husk/internal/testkit/images"
)

// startTimeout bounds how long a daemon may take until it answers.
const startTimeout = 30 * time.Second

// Options say which binaries to use.
type Options struct {
	// Bin holds husk, the shim, testnode and crictl.
	Bin string
	// Cache holds the CRI-O that testnode built.
	Cache string
}

// Rig is a running node.
type Rig struct {
	bin  string
	Dir  string
	Node Node
}

// Node is what the rig needs of testnode's node.json.
type Node struct {
	FrontSocket string `json:"frontSocket"`
	Network     struct {
		IP string `json:"ip"`
	} `json:"network"`
	CRIO struct {
		Socket         string `json:"socket"`
		Config         string `json:"config"`
		ConfigDir      string `json:"configDir"`
		Root           string `json:"root"`
		RunRoot        string `json:"runRoot"`
		RegistriesConf string `json:"registriesConf"`
	} `json:"crio"`
	Registry struct {
		Address string `json:"address"`
	} `json:"registry"`
	CgroupParent string `json:"cgroupParent"`
}

// Request is one line of the registry's access log.
type Request struct {
	Method string `json:"method"`
	Path   string `json:"path"`
	Remote string `json:"remote"`
	Status int    `json:"status"`
	Bytes  int64  `json:"bytes"`
}

// Start brings a node up, in a new folder with a short path. The caller closes it.
func Start(ctx context.Context, opts Options) (*Rig, error) {
	bin, err := filepath.Abs(opts.Bin)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("/tmp", "husk-")
	if err != nil {
		return nil, err
	}
	r := &Rig{bin: bin, Dir: filepath.Join(dir, "n")}
	if err := r.up(ctx, opts); err != nil {
		return nil, errors.Join(err, r.Close(context.WithoutCancel(ctx)))
	}
	return r, nil
}

func (r *Rig) up(ctx context.Context, opts Options) error {
	dir := filepath.Dir(r.Dir)
	for _, d := range []string{r.Dir, r.Keys()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	if err := images.GenerateKeys(r.keyPair()); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(r.keyPair(), "private.pem"), filepath.Join(r.Keys(), "private.pem")); err != nil {
		return err
	}
	shim := filepath.Join(dir, "shim.toml")
	text := fmt.Sprintf("runtime_root = %q\nkeys_dir = %q\nregistries_conf = %q\nexits_dir = %q\n",
		filepath.Join(dir, "state", "runc"), r.Keys(), filepath.Join(r.Dir, "conf", "registries.conf"), filepath.Join(r.Dir, "crio", "exits"))
	if err := os.WriteFile(shim, []byte(text), 0o600); err != nil {
		return err
	}
	out, err := r.Tool(ctx, "testnode", "up", "--dir", r.Dir, "--cache", opts.Cache,
		"--husk-shim", filepath.Join(r.bin, "containerd-shim-husk-v2"), "--shim-config", shim)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), &r.Node); err != nil {
		return fmt.Errorf("parse node.json: %w", err)
	}
	return nil
}

// Close takes the node down, however far it had come up, and removes its folder.
func (r *Rig) Close(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(r.Dir, "node.json")); err == nil {
		if _, err := r.Tool(ctx, "testnode", "down", "--dir", r.Dir); err != nil {
			return err // the folder has the logs that say why
		}
	}
	return os.RemoveAll(filepath.Dir(r.Dir))
}

func (r *Rig) keyPair() string { return filepath.Join(filepath.Dir(r.Dir), "pair") }

// Keys is the directory of the private keys that the shim may use.
func (r *Rig) Keys() string { return filepath.Join(filepath.Dir(r.Dir), "keys") }

// PublicKey is the file that images are encrypted for.
func (r *Rig) PublicKey() string { return filepath.Join(r.keyPair(), "public.pem") }

// HuskConfig is the daemon's configuration file.
func (r *Rig) HuskConfig() string { return filepath.Join(filepath.Dir(r.Dir), "husk.toml") }

// ToolError is a tool that failed.
type ToolError struct {
	Tool string
	// Stderr is what it complained about.
	Stderr string
	err    error
}

// Error names the tool and repeats its complaint.
func (e *ToolError) Error() string { return fmt.Sprintf("%s: %v: %s", e.Tool, e.err, e.Stderr) }

// Unwrap returns how the process ended.
func (e *ToolError) Unwrap() error { return e.err }

// Tool runs one of the project's binaries and returns what it printed. The error
// holds what it complained about.
func (r *Rig) Tool(ctx context.Context, name string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, filepath.Join(r.bin, name), args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// A Ctrl-C is for this process, which then takes the node down; a tool that is
	// cut off in the middle could leave what nobody knows of.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = startTimeout
	if err := cmd.Run(); err != nil {
		return stdout.String(), &ToolError{Tool: name, Stderr: strings.TrimSpace(stderr.String()), err: err}
	}
	return strings.TrimSpace(stdout.String()), nil
}

// StartHusk starts `husk serve` as a daemon of the node and waits until it answers.
func (r *Rig) StartHusk(ctx context.Context) error {
	text := fmt.Sprintf("listen = %q\nbackend = %q\nhandover_socket = %q\ncrio_config = %q\ncrio_config_dir = %q\nregistries_conf = %q\n",
		r.Node.FrontSocket, r.Node.CRIO.Socket, filepath.Join(filepath.Dir(r.Dir), "handover.sock"), r.Node.CRIO.Config, r.Node.CRIO.ConfigDir, r.Node.CRIO.RegistriesConf)
	if err := os.WriteFile(r.HuskConfig(), []byte(text), 0o600); err != nil {
		return err
	}
	if _, err := r.Tool(ctx, "testnode", "start", "--dir", r.Dir, "husk",
		filepath.Join(r.bin, "husk"), "--config", r.HuskConfig(), "serve"); err != nil {
		return err
	}
	return r.await(ctx, "husk", func() error {
		_, err := r.Crictl(ctx, "version")
		return err
	})
}

// StartByteProxy starts a proxy in front of CRI-O that copies bytes and understands
// none of them, and returns its socket.
func (r *Rig) StartByteProxy(ctx context.Context) (string, error) {
	socket := filepath.Join(r.Dir, "run", "proxy.sock")
	if _, err := r.Tool(ctx, "testnode", "start", "--dir", r.Dir, "byte-proxy",
		"/usr/bin/socat", "UNIX-LISTEN:"+socket+",fork", "UNIX-CONNECT:"+r.Node.CRIO.Socket); err != nil {
		return "", err
	}
	return socket, r.await(ctx, "the byte proxy", func() error {
		_, err := os.Stat(socket)
		return err
	})
}

// PID returns the process ID of a daemon of the node: crio, registry or husk.
func (r *Rig) PID(daemon string) (int, error) {
	data, err := os.ReadFile(filepath.Join(r.Dir, "node.json"))
	if err != nil {
		return 0, err
	}
	var node struct {
		Daemons map[string]struct {
			PID int `json:"pid"`
		} `json:"daemons"`
	}
	if err := json.Unmarshal(data, &node); err != nil {
		return 0, err
	}
	pid := node.Daemons[daemon].PID
	if pid == 0 {
		return 0, fmt.Errorf("%s is not running", daemon)
	}
	return pid, nil
}

func (r *Rig) await(ctx context.Context, what string, ready func() error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w", what, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Crictl runs the CRI client against husk.
func (r *Rig) Crictl(ctx context.Context, args ...string) (string, error) {
	return r.Tool(ctx, "crictl", append([]string{"-r", "unix://" + r.Node.FrontSocket}, args...)...)
}

// StockCrictl runs the CRI client against CRI-O itself, as if husk were not there.
func (r *Rig) StockCrictl(ctx context.Context, args ...string) (string, error) {
	return r.Tool(ctx, "crictl", append([]string{"-r", "unix://" + r.Node.CRIO.Socket}, args...)...)
}

// Push builds an image, pushes it to the node's registry, and returns its full
// reference and what was built.
func (r *Rig) Push(ctx context.Context, name string, spec images.Spec) (string, images.Summary, error) {
	layout := filepath.Join(filepath.Dir(r.Dir), "images", strings.ReplaceAll(name, "/", "-"))
	summary, err := images.Build(ctx, layout, "latest", spec)
	if err != nil {
		return "", images.Summary{}, err
	}
	ref := r.Node.Registry.Address + "/" + name + ":latest"
	return ref, summary, images.Push(ctx, layout, "latest", ref)
}

// LogEnd returns the present end of the registry's access log.
func (r *Rig) LogEnd(ctx context.Context) (string, error) {
	return r.Tool(ctx, "testnode", "access-log", "--dir", r.Dir, "--offset")
}

// Requests returns what the registry was asked since an end of its access log.
func (r *Rig) Requests(ctx context.Context, since string) ([]Request, error) {
	out, err := r.Tool(ctx, "testnode", "access-log", "--dir", r.Dir, "--since", since)
	if err != nil {
		return nil, err
	}
	requests := []Request{}
	scan := bufio.NewScanner(strings.NewReader(out))
	for scan.Scan() {
		var q Request
		if err := json.Unmarshal(scan.Bytes(), &q); err != nil {
			return nil, fmt.Errorf("parse access log: %w", err)
		}
		requests = append(requests, q)
	}
	return requests, scan.Err()
}
