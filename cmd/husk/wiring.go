package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containers/storage"
	"github.com/urfave/cli/v2"

	"github.com/husk-cri/husk/internal/config"
	"github.com/husk-cri/husk/internal/crioconf"
	"github.com/husk-cri/husk/internal/podpull"
	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/manifestonly/cstore"
	"github.com/husk-cri/husk/manifestonly/layout"
	"github.com/husk-cri/husk/manifestonly/registry"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// settings is one reading of both configurations, and the source of images that they
// describe. It is never changed: a reload makes another one.
type settings struct {
	config   config.Config
	crio     crioconf.Config
	registry registry.Config
	source   *registry.Source
	// problems are those that husk can live with.
	problems []config.Problem
}

// readSettings reads husk.toml and crio.conf with their drop-ins. What is wrong with
// the files themselves is an error; what will not work of what they say is among the
// problems.
func readSettings(path string) (settings, error) {
	loaded := config.Read(path)
	if err := loaded.Err(); err != nil {
		return settings{}, err
	}
	system, err := systemStorage()
	if err != nil {
		return settings{}, err
	}
	crio, err := crioconf.Load(loaded.Config.CrioConfig, loaded.Config.CrioConfigDir, system)
	if err != nil {
		return settings{}, err
	}
	s := newSettings(loaded.Config, crio)
	s.problems = append(crioconf.Check(crio), config.Check(loaded, crio)...)
	return s, nil
}

// newSettings makes settings of what was read, problems not looked for.
func newSettings(conf config.Config, crio crioconf.Config) settings {
	s := settings{config: conf, crio: crio, registry: registryConfig(conf, crio)}
	s.source = registry.New(s.registry)
	return s
}

// registriesProblems reads registries.conf, for all sources of this process, and says
// what is wrong with it. CRI-O starts with a broken one too, and then fails every pull.
// That the file is missing is among the problems already.
func registriesProblems(s settings) []config.Problem {
	err := s.source.Reload()
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return []config.Problem{{
		File: cmp.Or(s.config.RegistriesConf, "registries.conf"), What: err.Error(),
		Remedy: "mend the file, containers-registries.conf(5): every pull fails",
	}}
}

func registryConfig(conf config.Config, crio crioconf.Config) registry.Config {
	return registry.Config{
		AuthFile:           crio.Image.GlobalAuthFile,
		NamespacedAuthDir:  crio.Image.NamespacedAuthDir,
		PolicyPath:         crio.Image.SignaturePolicy,
		PolicyDir:          crio.Image.SignaturePolicyDir,
		RegistriesConf:     conf.RegistriesConf,
		RegistriesConfDir:  conf.RegistriesConfDir,
		InsecureRegistries: crio.Image.InsecureRegistries,
		ShortNameMode:      crio.Image.ShortNameMode,
		ProgressTimeout:    crio.Image.PullProgressTimeout,
		UserAgent:          "husk/" + version,
	}
}

// backend is the socket of CRI-O.
func (s settings) backend() string {
	if s.config.Backend != "" {
		return s.config.Backend
	}
	return s.crio.Listen
}

// placed pulls where the pod is, into the store.
func (s settings) placed(store *cstore.Store) *podpull.Puller {
	return &podpull.Puller{Registry: s.registry, Names: s.source, Store: store, Environ: os.Environ()}
}

// storageLock is the file that every storage of containers/storage has.
const storageLock = "storage.lock"

// node is what the commands beside serve work with.
type node struct {
	settings
	store *cstore.Store
}

// readNode reads the configurations. The store is nil until it is opened.
func readNode(c *cli.Context) (*node, error) {
	s, err := readSettings(c.String("config"))
	if err != nil {
		return nil, err
	}
	return &node{settings: s}, nil
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
	n.store, err = cstore.Open(storeOptions(n.crio.Storage))
	return err
}

// look opens the storage that is there. A command that looks at records, on a machine
// without CRI-O or with the wrong configuration, leaves none behind.
func (n *node) look() error {
	root := n.crio.Storage.Root
	if _, err := os.Stat(filepath.Join(root, storageLock)); errors.Is(err, fs.ErrNotExist) {
		return errdefs.Newf(errdefs.Unavailable, "open CRI-O's storage", "there is none in %s: has CRI-O run on this machine?", root)
	}
	return n.open()
}

// sourceOf returns where a name is looked for: the registries, or a local layout.
func (n *node) sourceOf(name string) (manifestonly.Source, error) {
	if layout.Is(name) {
		return layout.New(name, layout.Config{PolicyPath: n.registry.PolicyPath})
	}
	return n.source, nil
}

// systemStorage is what storage.conf says; CRI-O starts from it too.
func systemStorage() (crioconf.Storage, error) {
	system, err := storage.DefaultStoreOptions()
	if err != nil {
		return crioconf.Storage{}, fmt.Errorf("read storage.conf: %w", err)
	}
	return crioconf.Storage{
		Root: system.GraphRoot, RunRoot: system.RunRoot, ImageStore: system.ImageStore,
		Driver: system.GraphDriverName, Options: system.GraphDriverOptions,
	}, nil
}

func storeOptions(s crioconf.Storage) cstore.Options {
	return cstore.Options{
		GraphRoot: s.Root, RunRoot: s.RunRoot, ImageStore: s.ImageStore, Driver: s.Driver, DriverOptions: s.Options,
	}
}
