// Package daemon is husk serve: one reading of the configurations after another, and
// what the front works with while they hold.
package daemon

import (
	"cmp"
	"errors"
	"io/fs"
	"os"

	"github.com/husk-cri/husk/internal/config"
	"github.com/husk-cri/husk/internal/crioconf"
	"github.com/husk-cri/husk/internal/podpull"
	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/manifestonly/cstore"
	"github.com/husk-cri/husk/manifestonly/registry"
)

// Settings are one reading of both configurations, and the source of images that they
// describe. They are never changed: a reload makes others.
type Settings struct {
	Config config.Config
	Crio   crioconf.Config
	// Source has the registries.
	Source *registry.Source

	registry registry.Config
	// problems are what will not work of what the files say.
	problems []config.Problem
}

// ReadSettings reads husk.toml and crio.conf with their drop-ins, for the Husk of this
// version. What is wrong with the files themselves is an error of kind
// InvalidArgument; what will not work of what they say is for [Check].
func ReadSettings(path, version string) (Settings, error) {
	return newSettings(config.Read(path), version)
}

// checkedSettings is ReadSettings with the problems.
func checkedSettings(path, version string) (Settings, error) {
	loaded := config.Read(path)
	s, err := newSettings(loaded, version)
	if err == nil {
		s.problems = problemsOf(loaded, s.Crio)
	}
	return s, err
}

func newSettings(loaded config.Loaded, version string) (Settings, error) {
	if err := loaded.Err(); err != nil {
		return Settings{}, err
	}
	system, err := systemStorage()
	if err != nil {
		return Settings{}, err
	}
	crio, err := crioconf.Load(loaded.Config.CrioConfig, loaded.Config.CrioConfigDir, system)
	if err != nil {
		return Settings{}, err
	}
	s := Settings{Config: loaded.Config, Crio: crio, registry: registryConfig(loaded.Config, crio, version)}
	s.Source = registry.New(s.registry)
	return s, nil
}

// problemsOf finds what will not work of what the files say.
func problemsOf(loaded config.Loaded, crio crioconf.Config) []config.Problem {
	return append(crioconf.Check(crio), config.Check(loaded, crio)...)
}

// registriesProblems reads registries.conf, for all sources of this process, and says
// what is wrong with it. CRI-O starts with a broken one too, and then fails every pull.
// That the file is missing is among the problems already.
func registriesProblems(source *registry.Source, file string) []config.Problem {
	err := source.Reload()
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return []config.Problem{{
		File: cmp.Or(file, "registries.conf"), What: err.Error(),
		Remedy: "mend the file, containers-registries.conf(5): every pull fails",
	}}
}

func registryConfig(conf config.Config, crio crioconf.Config, version string) registry.Config {
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

// Check finds what is wrong with husk.toml as it was read, with crio.conf, with
// registries.conf, and with them together.
func Check(loaded config.Loaded) []config.Problem {
	problems := append([]config.Problem{}, loaded.Problems...)
	if loaded.Partial { // where CRI-O's configuration is, or what else was said, is not known
		return problems
	}
	system, err := systemStorage()
	if err != nil {
		problems = append(problems, config.Problem{
			File: "storage.conf", What: err.Error(), Remedy: "mend the file, containers-storage.conf(5): CRI-O does not start", Fatal: true,
		})
	}
	crio, err := crioconf.Load(loaded.Config.CrioConfig, loaded.Config.CrioConfigDir, system)
	if err != nil {
		return append(problems, asProblem(err, loaded.Config.CrioConfigDir))
	}
	problems = append(problems, problemsOf(loaded, crio)...)
	source := registry.New(registryConfig(loaded.Config, crio, ""))
	return append(problems, registriesProblems(source, loaded.Config.RegistriesConf)...)
}

// asProblem returns the problem in err, or one of file.
func asProblem(err error, file string) config.Problem {
	var p config.Problem
	if errors.As(err, &p) {
		return p
	}
	return config.Problem{File: file, What: err.Error(), Remedy: "mend it: husk does not start", Fatal: true}
}

// PolicyPath is the node's signature policy; "" is the system's.
func (s Settings) PolicyPath() string { return s.registry.PolicyPath }

// backend is the socket of CRI-O.
func (s Settings) backend() string {
	if s.Config.Backend != "" {
		return s.Config.Backend
	}
	return s.Crio.Listen
}

// placed pulls where the pod is, into the store.
func (s Settings) placed(store manifestonly.Writer) *podpull.Puller {
	return &podpull.Puller{Registry: s.registry, Names: s.Source, Store: store, Environ: os.Environ()}
}

// StoreOptions say where CRI-O keeps images.
func (s Settings) StoreOptions() cstore.Options { return storeOptions(s.Crio.Storage) }

// systemStorage is what storage.conf says; CRI-O starts from it too.
func systemStorage() (crioconf.Storage, error) {
	system, err := cstore.SystemOptions()
	return crioconf.Storage{
		Root: system.GraphRoot, RunRoot: system.RunRoot, ImageStore: system.ImageStore,
		Driver: system.Driver, Options: system.DriverOptions,
	}, err
}

func storeOptions(s crioconf.Storage) cstore.Options {
	return cstore.Options{
		GraphRoot: s.Root, RunRoot: s.RunRoot, ImageStore: s.ImageStore, Driver: s.Driver, DriverOptions: s.Options,
	}
}
