package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/husk-cri/husk/internal/daemon"
	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/manifestonly/cstore"
	"github.com/husk-cri/husk/manifestonly/layout"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// storageLock is the file that every storage of containers/storage has.
const storageLock = "storage.lock"

// node is what the commands beside serve work with.
type node struct {
	daemon.Settings
	store *cstore.Store
}

// readNode reads the configurations. The store is nil until it is opened.
func readNode(c *cli.Context) (*node, error) {
	if err := needsRoot(c); err != nil {
		return nil, err
	}
	s, err := daemon.ReadSettings(c.String("config"), version)
	if err != nil {
		return nil, err
	}
	return &node{Settings: s}, nil
}

// openNode is readNode and look.
func openNode(c *cli.Context) (*node, error) {
	n, err := readNode(c)
	if err != nil {
		return nil, err
	}
	return n, n.look()
}

// open opens CRI-O's storage, and makes it where there is none.
func (n *node) open() (err error) {
	n.store, err = cstore.Open(n.StoreOptions())
	return err
}

// look opens the storage that is there. A command that looks at records, on a machine
// without CRI-O or with the wrong configuration, leaves none behind.
func (n *node) look() error {
	root := n.Crio.Storage.Root
	if _, err := os.Stat(filepath.Join(root, storageLock)); errors.Is(err, fs.ErrNotExist) {
		return errdefs.Newf(errdefs.Unavailable, "open CRI-O's storage", "there is none in %s: has CRI-O run on this machine?", root)
	}
	return n.open()
}

// sourceOf returns where a name is looked for: the registries, or a local layout.
func (n *node) sourceOf(name string) (manifestonly.Source, error) {
	if layout.Is(name) {
		return layout.New(name, layout.Config{PolicyPath: n.PolicyPath()})
	}
	return n.Source, nil
}
