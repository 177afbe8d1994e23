// Package node starts and stops a node under test: a registry and a private stock CRI-O, in one folder.
package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/test/node/internal/build"
)

// stateFile is the file in the node's folder that holds the Node.
const stateFile = "node.json"

// Node is a node under test, as its node.json says it.
type Node struct {
	Dir      string `json:"dir"`
	Name     string `json:"name"`
	LogDir   string `json:"logDir"`
	LogLevel string `json:"logLevel"`
	// CgroupParent is what pods of this node put into linux.cgroup_parent. It is never used again for another node:
	// taking a node down kills what is in it.
	CgroupParent string  `json:"cgroupParent"`
	Network      Network `json:"network"`
	// FrontSocket is where a CRI front of this node should listen; nothing of testnode does.
	FrontSocket  string            `json:"frontSocket"`
	CRIO         CRIO              `json:"crio"`
	Registry     Registry          `json:"registry"`
	AuthRegistry *Registry         `json:"authRegistry,omitempty"`
	OCIHandlers  []string          `json:"ociHandlers"`
	Shim         Shim              `json:"shim"`
	Bin          Bin               `json:"bin"`
	Daemons      map[string]Daemon `json:"daemons"`
	// Reapers are the parents of all daemons ever started: what a daemon leaves behind is theirs.
	Reapers []Proc `json:"reapers"`
}

// Network is the node's bridge. Everything that listens for pods listens on its address.
type Network struct {
	Name   string `json:"name"` // of the CNI network: the bridge's and a random number, so that it is never used again
	Bridge string `json:"bridge"`
	IP     string `json:"ip"`
	Subnet string `json:"subnet"`
}

// CRIO says where CRI-O's files are.
type CRIO struct {
	Socket         string `json:"socket"`
	Config         string `json:"config"`
	ConfigDir      string `json:"configDir"`
	Root           string `json:"root"`
	RunRoot        string `json:"runRoot"`
	StorageConf    string `json:"storageConf"`
	RegistriesConf string `json:"registriesConf"`
	Policy         string `json:"policy"`
}

// Registry is one docker-registry.
type Registry struct {
	Address   string `json:"address"`
	Config    string `json:"config"`
	Data      string `json:"data"`
	AccessLog string `json:"accessLog"`
	Htpasswd  string `json:"htpasswd,omitempty"`
}

// Shim is what the handler husk runs. Without a path there is no such handler.
type Shim struct {
	Path   string `json:"path,omitempty"`
	Config string `json:"config,omitempty"`
}

// Bin holds the binaries in use.
type Bin struct {
	build.Binaries
	Conmon   string `json:"conmon"`
	Runc     string `json:"runc"`
	Registry string `json:"registry"`
}

// Load reads the node of a folder and locks it until unlock is called, so that commands do not mix up its state.
func Load(dir string) (n *Node, unlock func(), err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("node folder: %w", err)
	}
	f, err := os.Open(dir) // the folder itself is the lock: node.json is replaced by every save
	if err != nil {
		return nil, nil, fmt.Errorf("lock node: %w", err)
	}
	unlock = func() { _ = f.Close() } // closing unlocks
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		unlock()
		return nil, nil, fmt.Errorf("lock node: %w", err)
	}
	n, err = read(dir)
	if err != nil {
		unlock()
		return nil, nil, err
	}
	return n, unlock, nil
}

// Read reads the node of a folder without locking it, for commands that change nothing.
func Read(dir string) (*Node, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("node folder: %w", err)
	}
	return read(dir)
}

func read(dir string) (*Node, error) {
	b, err := os.ReadFile(filepath.Join(dir, stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no node in %s: %w", dir, err)
	}
	if err != nil {
		return nil, fmt.Errorf("read node: %w", err)
	}
	var n Node
	if err := json.Unmarshal(b, &n); err != nil {
		return nil, fmt.Errorf("parse %s of %s: %w", stateFile, dir, err)
	}
	return &n, nil
}

// save writes node.json, whole or not at all.
func (n *Node) save() error {
	b, err := json.MarshalIndent(n, "", "  ")
	if err != nil {
		return fmt.Errorf("marshal node: %w", err)
	}
	tmp := n.path(stateFile + ".tmp")
	if err := os.WriteFile(tmp, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("write node: %w", err)
	}
	if err := os.Rename(tmp, n.path(stateFile)); err != nil {
		return fmt.Errorf("write node: %w", err)
	}
	return nil
}

func (n *Node) path(parts ...string) string {
	return filepath.Join(append([]string{n.Dir}, parts...)...)
}
