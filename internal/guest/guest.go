// Package guest is image-rs's place in a guest: it pulls images with package layerpull
// and makes bundles of them, as the Confidential Data Hub's ImagePullService does.
package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/internal/guest/bundle"
	"github.com/husk-cri/husk/internal/guest/imagers"
	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/manifestonly/registry"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
	"github.com/husk-cri/husk/pkg/layerpull"
	"github.com/husk-cri/husk/pkg/layerpull/keys"
)

// The defaults of a Kata guest.
const (
	DefaultSocket       = "/run/confidential-containers/cdh.sock"
	DefaultAASocket     = "/run/confidential-containers/attestation-agent/attestation-agent.sock"
	DefaultConfig       = "/run/confidential-containers/initdata/cdh.toml"
	DefaultBundleParent = "/run/kata-containers"
	DefaultRunDir       = "/run/husk-guest"
	KernelParameters    = "/proc/cmdline"
)

const (
	// maxName bounds the name of an image: a repository, a tag and a digest fit.
	maxName = 1024
	// maxPulls bounds the pulls at once: each has connections, decoders and buffers.
	maxPulls = 8
	// pullTimeout ends a pull that hangs in spite of every smaller limit. The agent
	// gives up after 20 minutes by default, and says so in the request.
	pullTimeout = time.Hour
)

// Options say where things are in the guest. There are no defaults but the ones said.
type Options struct {
	// ConfigNamed says that somebody named Config, which must then be there: a mistyped name
	// would be a guest without the image policy in it. Zero: it may be missing.
	ConfigNamed bool
	// Config is cdh.toml; Cmdline the kernel parameters, for a guest without one.
	Config, Cmdline string
	// WorkDir replaces the work_dir of the configuration; "" leaves it.
	WorkDir string
	// RunDir is for files that hold credentials; it should be a tmpfs.
	RunDir string
	// BundleParent is the directory in which bundles are.
	BundleParent string
	// KeysDir holds private keys of encrypted layers, as layerpull has it; "" for none.
	KeysDir string
	// KeyProviders is an ocicrypt_keyprovider.conf; "" for CDHSocket alone, by the name
	// that layers of confidential containers have it.
	KeyProviders string
	// CDHSocket is the Confidential Data Hub that reads kbs:// URIs and unwraps keys; ""
	// for none.
	CDHSocket string
	// Locations lets a pull name an image in a local OCI layout, see
	// [layerpull.IsLocation]. It is not for a service: who asks one is the host, which must
	// not choose files of the guest.
	Locations bool
	// AASocket is the attestation agent that is told of each pull; one that does not
	// exist is told nothing.
	AASocket string
	// Log gets what callers are not told.
	Log *slog.Logger
}

// Guest pulls images. Its configuration is read at the first pull, as image-rs does, and
// not again: proxies and certificates cannot change in a running process.
type Guest struct {
	opts  Options
	slots chan struct{}
	// measureTimeout bounds the measurement of a pull.
	measureTimeout time.Duration
	// loading is held while the configuration is read, which may ask the key broker: a
	// channel, because who waits for it may be canceled.
	loading chan struct{}

	mu     sync.Mutex
	loaded *loaded
	// started is the keeper of Start, for a guest that never pulls.
	started *bundle.Keeper
	busy    map[string]struct{} // the bundles that are being made
}

// loaded is what the first pull has read.
type loaded struct {
	store  *layerpull.Store
	pull   layerpull.Config
	names  *registry.Source
	keeper *bundle.Keeper
	dir    string // the work directory
	// files is the directory of converted files, whose lock is held.
	files *os.File
}

// New returns a guest. It reads nothing yet.
func New(opts Options) *Guest {
	return &Guest{
		opts: opts, measureTimeout: measureTimeout, slots: make(chan struct{}, maxPulls), loading: make(chan struct{}, 1),
		busy: map[string]struct{}{},
	}
}

// Start clears up what dead processes have left: unfinished bundles, and files with
// credentials.
func (g *Guest) Start(ctx context.Context) error {
	conf, err := g.config()
	if err != nil {
		return err
	}
	keeper, err := g.openKeeper(conf.WorkDir)
	if err != nil {
		return err
	}
	g.mu.Lock()
	g.started = keeper
	g.mu.Unlock()
	return errors.Join(keeper.Sweep(ctx), g.sweepFiles())
}

// Close takes back the bundles that no container uses, and removes the files with
// credentials. The layers stay for the next start.
func (g *Guest) Close(ctx context.Context) error {
	g.mu.Lock()
	keeper := g.started
	if g.loaded != nil {
		keeper = g.loaded.keeper
	}
	g.mu.Unlock()
	if keeper == nil {
		return nil
	}
	return errors.Join(keeper.Release(ctx), g.Forget())
}

// Forget removes the files with credentials; the next pull reads the configuration again.
// Bundles stay.
func (g *Guest) Forget() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.loaded
	if g.loaded = nil; l == nil {
		return nil
	}
	return l.close()
}

func (l *loaded) close() error {
	err := os.RemoveAll(l.files.Name())
	return errors.Join(err, l.files.Close())
}

func (g *Guest) config() (imagers.Config, error) {
	if g.opts.ConfigNamed {
		if _, err := os.Stat(g.opts.Config); err != nil {
			return imagers.Config{}, errdefs.New(errdefs.InvalidArgument, "read the image configuration", err)
		}
	}
	conf, err := imagers.Read(g.opts.Config, g.opts.Cmdline)
	if err != nil {
		return conf, err
	}
	if g.opts.WorkDir != "" {
		conf.WorkDir = g.opts.WorkDir
	}
	conf.WorkDir = filepath.Clean(conf.WorkDir)
	return conf, nil
}

func (g *Guest) openKeeper(workDir string) (*bundle.Keeper, error) {
	return bundle.Open(filepath.Join(workDir, "bundles"), filepath.Clean(g.opts.BundleParent), workDir)
}

// load reads the configuration, once. A failure is not kept: the next pull tries again.
func (g *Guest) load(ctx context.Context) (*loaded, error) {
	select {
	case g.loading <- struct{}{}:
		defer func() { <-g.loading }()
	case <-ctx.Done():
		return nil, errdefs.New(errdefs.KindOf(ctx.Err()), "wait for the configuration", ctx.Err())
	}
	g.mu.Lock()
	l := g.loaded
	g.mu.Unlock()
	if l != nil {
		return l, nil
	}
	l, err := g.read(ctx)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.loaded = l
	return l, nil
}

// read reads the configuration and opens what it names.
func (g *Guest) read(ctx context.Context) (*loaded, error) {
	conf, err := g.config()
	if err != nil {
		return nil, err
	}
	for _, w := range conf.Warnings {
		g.opts.Log.Warn("image configuration: " + w)
	}
	l := &loaded{dir: conf.WorkDir}
	if l.keeper, err = g.openKeeper(conf.WorkDir); err != nil {
		return nil, err
	}
	for _, sub := range []string{"layers", "pulled"} {
		if err := os.MkdirAll(filepath.Join(l.dir, sub), 0o700); err != nil {
			return nil, errdefs.New(errdefs.Internal, "make work directory", err)
		}
	}
	if l.store, err = layerpull.OpenStore(filepath.Join(l.dir, "layers")); err != nil {
		return nil, err
	}
	if l.files, err = g.newFiles(); err != nil {
		return nil, err
	}
	if err := g.apply(ctx, conf, l); err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

// apply converts the files and points the pulls to them.
func (g *Guest) apply(ctx context.Context, conf imagers.Config, l *loaded) error {
	if err := keys.NoCoreDump(); err != nil {
		return errdefs.New(errdefs.Internal, "guard the keys", err)
	}
	var resources imagers.Resources
	if g.opts.CDHSocket != "" {
		resources = hub{g.opts.CDHSocket}
	}
	files, err := conf.Write(ctx, l.files.Name(), resources)
	if err != nil {
		return err
	}
	providers, err := g.keyProviders(l)
	if err != nil {
		return err
	}
	for _, variable := range files.Environment {
		// Before anything looks: net/http and crypto/x509 read them once.
		name, value, _ := strings.Cut(variable, "=")
		if err := os.Setenv(name, value); err != nil {
			return errdefs.New(errdefs.Internal, "set "+name, err)
		}
	}
	l.pull = layerpull.Config{
		AuthFile: files.Auth, KeysDir: g.opts.KeysDir, KeyProviders: providers, PolicyPath: files.Policy,
		RegistriesConf: files.Registries, RegistriesConfDir: files.Empty, RegistriesD: files.RegistriesD,
		ParallelLayers: conf.Concurrency,
	}
	l.names = registry.New(registry.Config{
		AuthFile: files.Auth, PolicyPath: files.Policy,
		RegistriesConf: files.Registries, RegistriesConfDir: files.Empty, RegistriesD: files.RegistriesD,
	})
	return nil
}

// hubProvider is the name of the key provider in the layers of confidential containers.
const hubProvider = "attestation-agent"

// keyProviders returns the ocicrypt_keyprovider.conf to use. Without one, the hub is asked
// for keys, as image-rs asks it.
func (g *Guest) keyProviders(l *loaded) (string, error) {
	const op = "configure key providers"
	if g.opts.KeyProviders != "" || g.opts.CDHSocket == "" {
		return g.opts.KeyProviders, nil
	}
	data, err := json.Marshal(map[string]any{"key-providers": map[string]any{
		hubProvider: map[string]string{"ttrpc": "unix://" + g.opts.CDHSocket},
	}})
	if err != nil {
		return "", errdefs.New(errdefs.Internal, op, err)
	}
	path := filepath.Join(l.files.Name(), "keyproviders.json")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return "", errdefs.New(errdefs.Internal, op, err)
	}
	return path, nil
}

// newFiles makes a directory for files with credentials, and locks it.
func (g *Guest) newFiles() (*os.File, error) {
	const op = "make run directory"
	if err := os.MkdirAll(g.opts.RunDir, 0o700); err != nil {
		return nil, errdefs.New(errdefs.Internal, op, err)
	}
	dir, err := os.MkdirTemp(g.opts.RunDir, "config-")
	if err != nil {
		return nil, errdefs.New(errdefs.Internal, op, err)
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, errdefs.New(errdefs.Internal, op, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errdefs.New(errdefs.Internal, op, errors.Join(err, f.Close()))
	}
	return f, nil
}

// sweepFiles removes the directories of dead processes, whose locks went with them.
func (g *Guest) sweepFiles() error {
	dirs, err := filepath.Glob(filepath.Join(g.opts.RunDir, "config-*"))
	if err != nil {
		return errdefs.New(errdefs.Internal, "sweep run directory", err)
	}
	for _, dir := range dirs {
		f, err := os.Open(dir)
		if err != nil {
			continue // gone meanwhile
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			err = os.RemoveAll(dir)
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return errdefs.New(errdefs.Internal, "sweep run directory", err)
		}
	}
	return nil
}

// pin returns what the name stands for, best first, each with a digest. A name with a
// digest asks no registry; for a tag each registry is asked until one knows it.
func (l *loaded) pin(ctx context.Context, name string) (imageref.Reference, error) {
	refs, err := l.names.Resolve(ctx, name)
	if err != nil {
		return imageref.Reference{}, err
	}
	var failed error
	for _, ref := range refs {
		if !ref.Digest().IsZero() {
			return ref, nil
		}
		pinned, err := l.ask(ctx, ref)
		if err == nil {
			return pinned, nil
		}
		if failed = err; ctx.Err() != nil {
			break
		}
	}
	return imageref.Reference{}, failed
}

// ask asks the registry for the digest of a tag.
func (l *loaded) ask(ctx context.Context, ref imageref.Reference) (_ imageref.Reference, err error) {
	remote, err := l.names.Open(ctx, ref, manifestonly.Access{})
	if err != nil {
		return imageref.Reference{}, err
	}
	defer func() { err = errors.Join(err, remote.Close()) }()
	data, err := remote.Manifest(ctx, imageref.ManifestDigest{})
	if err != nil {
		return imageref.Reference{}, err
	}
	m, err := imageref.ParseManifestDigest(digest.FromBytes(data).String())
	if err != nil {
		return imageref.Reference{}, err
	}
	pinned, err := ref.Pin(m)
	if err != nil {
		return imageref.Reference{}, fmt.Errorf("pin %s: %w", ref, err)
	}
	return pinned, nil
}
