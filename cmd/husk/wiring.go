package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"github.com/containers/storage"
	"github.com/urfave/cli/v2"

	"github.com/husk-cri/husk/internal/config"
	"github.com/husk-cri/husk/internal/crioconf"
	"github.com/husk-cri/husk/internal/front"
	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/manifestonly/cstore"
	"github.com/husk-cri/husk/manifestonly/registry"
	"github.com/husk-cri/husk/pkg/imageref"
)

// node is what every command works with: the two configurations, and the source
// and the store they describe.
type node struct {
	config config.Config
	crio   crioconf.Config
	source *registry.Source
	store  *cstore.Store
}

// openNode reads both configurations and opens CRI-O's storage.
func openNode(c *cli.Context) (*node, error) {
	conf, err := config.Load(c.String("config"))
	if err != nil {
		return nil, err
	}
	system, err := systemStorage()
	if err != nil {
		return nil, err
	}
	crio, err := crioconf.Load(conf.CrioConfig, conf.CrioConfigDir, system)
	if err != nil {
		return nil, err
	}
	store, err := cstore.Open(storeOptions(crio.Storage))
	if err != nil {
		return nil, err
	}
	return &node{config: conf, crio: crio, store: store, source: registry.New(registry.Config{
		AuthFile:           crio.Image.GlobalAuthFile,
		PolicyPath:         crio.Image.SignaturePolicy,
		PolicyDir:          crio.Image.SignaturePolicyDir,
		RegistriesConf:     conf.RegistriesConf,
		RegistriesConfDir:  conf.RegistriesConfDir,
		InsecureRegistries: crio.Image.InsecureRegistries,
		UserAgent:          "husk/" + version,
	})}, nil
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

// Pull implements front.Puller.
func (n *node) Pull(ctx context.Context, req manifestonly.Request) (manifestonly.Result, error) {
	return manifestonly.Pull(ctx, req, n.source, n.store)
}

// PullHeld implements front.Held.
func (n *node) PullHeld(ctx context.Context, id imageref.ImageID, ref imageref.Reference) (manifestonly.Result, error) {
	return manifestonly.Pull(ctx, manifestonly.Request{Name: ref.String()}, n.store.Held(id), n.store)
}

// handlers implements front.Handlers on crio.conf.
type handlers struct {
	config config.Config
	crio   crioconf.Config
}

var (
	_ front.Handlers = handlers{}
	_ front.Puller   = (*node)(nil)
	_ front.Held     = (*node)(nil)
)

func (h handlers) Handler(name string) (front.Handler, bool) {
	conf, ok := h.crio.Handlers[name]
	return front.Handler{
		Name: name, GuestPull: conf.GuestPull(), ResolvesNames: conf.ResolvesNames(), KeepTag: !h.config.PinDigest(name),
	}, ok
}

func (h handlers) Default() string     { return h.crio.DefaultRuntime }
func (h handlers) GuestPull() []string { return h.crio.GuestPullHandlers() }

// newLogger writes structured logs as the configuration says, already validated.
func newLogger(w io.Writer, conf config.Config) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(conf.LogLevel)); err != nil {
		return nil, fmt.Errorf("log_level: %w", err)
	}
	options := &slog.HandlerOptions{Level: level}
	if conf.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, options)), nil
	}
	return slog.New(slog.NewTextHandler(w, options)), nil
}
