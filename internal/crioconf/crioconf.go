// Package crioconf reads the parts of CRI-O's configuration that Husk must agree
// with: crio.conf and its drop-ins, merged exactly as CRI-O 1.34 merges them
// (pkg/config, UpdateFromFile and UpdateFromPath). Nothing that crio.conf says is
// configured a second time in Husk. What CRI-O is told by flags or CONTAINER_*
// variables of its own, which win over the files, cannot be seen from here.
package crioconf

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
)

// CRI-O's own defaults (pkg/config, DefaultConfig).
const (
	// DefaultFile is where CRI-O keeps its configuration.
	DefaultFile = "/etc/crio/crio.conf"
	// DefaultDir is where CRI-O keeps its drop-ins.
	DefaultDir = "/etc/crio/crio.conf.d"

	defaultListen       = "/var/run/crio/crio.sock"
	defaultRuntime      = "crun"
	defaultPolicyDir    = "/etc/crio/policies"
	runtimeTypeVM       = "vm"
	huskShim            = "containerd-shim-husk-v2"
	defaultImageVolumes = "mkdir"
)

// Limits on what is read, against a file put there by accident: a core dump or a
// log in the drop-in directory must be an error, not a full memory.
const (
	maxFileBytes = 1 << 20
	maxFiles     = 256
)

// Config is what CRI-O is configured to do, as far as it concerns Husk.
type Config struct {
	// Storage is where CRI-O keeps images and containers.
	Storage Storage
	// Listen is the path of the socket that CRI-O serves.
	Listen string
	// DefaultRuntime is the handler of a pod that names none.
	DefaultRuntime string
	// Handlers are the runtime handlers by name.
	Handlers map[string]Handler
	// Image is how CRI-O pulls.
	Image Image
}

// Storage says where containers/storage lives.
type Storage struct {
	Root       string
	RunRoot    string
	ImageStore string
	Driver     string
	Options    []string
}

// Handler is one entry of [crio.runtime.runtimes].
type Handler struct {
	// Path is the OCI runtime, or the shim for a handler of type "vm".
	Path string
	// Type is "oci", "vm" or "pod"; empty is "oci".
	Type string
	// ConfigPath is handed to the shim.
	ConfigPath string
	// PullImage is runtime_pull_image: the runtime pulls the layers, not the host.
	PullImage bool
}

// GuestPull reports whether layers of this handler's images are pulled by the
// runtime. CRI-O passes the guest-pull volume only to handlers of type "vm".
func (h Handler) GuestPull() bool { return h.PullImage && h.Type == runtimeTypeVM }

// ResolvesNames reports whether the runtime looks user and group names up in the
// image's own files, as Husk's shim does and Kata's agent does not.
func (h Handler) ResolvesNames() bool { return filepath.Base(h.Path) == huskShim }

// Image holds the settings of [crio.image] that decide what may be pulled from where.
type Image struct {
	// GlobalAuthFile is the auth.json used when a pull brings no credentials.
	GlobalAuthFile string
	// SignaturePolicy is the policy.json; empty is the system's.
	SignaturePolicy string
	// SignaturePolicyDir holds <namespace>.json policies.
	SignaturePolicyDir string
	// InsecureRegistries may be spoken to without verified TLS.
	InsecureRegistries []string
	// ImageVolumes is "mkdir", "bind" or "ignore".
	ImageVolumes string
}

// file is the shape of crio.conf, limited to what Husk reads.
type file struct {
	Crio struct {
		Root          string   `toml:"root"`
		RunRoot       string   `toml:"runroot"`
		ImageStore    string   `toml:"imagestore"`
		StorageDriver string   `toml:"storage_driver"`
		StorageOption []string `toml:"storage_option"`
		API           struct {
			Listen string `toml:"listen"`
		} `toml:"api"`
		Runtime struct {
			DefaultRuntime string              `toml:"default_runtime"`
			Runtimes       map[string]*handler `toml:"runtimes"`
		} `toml:"runtime"`
		Image struct {
			GlobalAuthFile     string   `toml:"global_auth_file"`
			SignaturePolicy    string   `toml:"signature_policy"`
			SignaturePolicyDir string   `toml:"signature_policy_dir"`
			InsecureRegistries []string `toml:"insecure_registries"`
			ImageVolumes       string   `toml:"image_volumes"`
		} `toml:"image"`
	} `toml:"crio"`
}

type handler struct {
	Path       string `toml:"runtime_path"`
	Type       string `toml:"runtime_type"`
	ConfigPath string `toml:"runtime_config_path"`
	PullImage  bool   `toml:"runtime_pull_image"`
	Inherit    bool   `toml:"inherit_default_runtime"`
}

// Load reads path, then every file below dir in lexical order. A missing dir is
// an empty one; a missing path is too when it is [DefaultFile], as for CRI-O.
// system is what storage.conf says: it holds where crio.conf says nothing, and its
// options come before those of crio.conf.
func Load(path, dir string, system Storage) (Config, error) {
	f := new(file)
	f.Crio.Root, f.Crio.RunRoot, f.Crio.ImageStore = system.Root, system.RunRoot, system.ImageStore
	f.Crio.StorageDriver, f.Crio.StorageOption = system.Driver, system.Options
	f.Crio.API.Listen = defaultListen
	f.Crio.Runtime.DefaultRuntime = defaultRuntime
	// Built into CRI-O: there without any file, and next to those that files add.
	f.Crio.Runtime.Runtimes = map[string]*handler{defaultRuntime: {}}
	f.Crio.Image.SignaturePolicyDir = defaultPolicyDir
	f.Crio.Image.ImageVolumes = defaultImageVolumes

	files, err := dropIns(dir)
	if err != nil {
		return Config{}, err
	}
	if _, err := os.Stat(path); path != DefaultFile || !errors.Is(err, fs.ErrNotExist) {
		files = append([]string{path}, files...)
	}
	for _, name := range files {
		if err := f.merge(name); err != nil {
			return Config{}, err
		}
	}
	f.inherit()
	return f.config(), nil
}

// inherit gives handlers with inherit_default_runtime what CRI-O gives them. What
// they say of pulling is their own.
func (f *file) inherit() {
	if f.Crio.Runtime.DefaultRuntime == "" {
		f.Crio.Runtime.DefaultRuntime = defaultRuntime
	}
	from := f.Crio.Runtime.Runtimes[f.Crio.Runtime.DefaultRuntime]
	for _, h := range f.Crio.Runtime.Runtimes {
		if h.Inherit && from != nil {
			h.Path, h.Type, h.ConfigPath = from.Path, from.Type, from.ConfigPath
		}
	}
}

// dropIns lists the regular files below dir in the order CRI-O reads them.
func dropIns(dir string) ([]string, error) {
	var files []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return nil
		}
		if len(files) == maxFiles {
			return fmt.Errorf("more than %d files", maxFiles)
		}
		files = append(files, p)
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read CRI-O drop-ins in %s: %w", dir, err)
	}
	return files, nil
}

// merge decodes one file over what is there already. Tables are merged, a
// handler that is named again is replaced whole, and storage options add up:
// that is what CRI-O's own decoding does.
func (f *file) merge(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("read CRI-O configuration: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxFileBytes {
		return fmt.Errorf("read CRI-O configuration %s: not a regular file of at most %d bytes", path, maxFileBytes)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read CRI-O configuration: %w", err)
	}
	before := *f
	f.Crio.StorageOption = nil
	if _, err := toml.Decode(string(data), f); err != nil {
		return fmt.Errorf("parse CRI-O configuration %s: %w", path, err)
	}
	f.Crio.StorageOption = mergeOptions(before.Crio.StorageOption, f.Crio.StorageOption)
	keep(&f.Crio.Root, before.Crio.Root)
	keep(&f.Crio.RunRoot, before.Crio.RunRoot)
	keep(&f.Crio.StorageDriver, before.Crio.StorageDriver)
	return nil
}

// keep restores what an empty value in a drop-in would have erased.
func keep(value *string, before string) {
	if *value == "" {
		*value = before
	}
}

// mergeOptions joins the lists and keeps the last of equal options.
func mergeOptions(a, b []string) []string {
	var merged []string
	all := append(slices.Clone(a), b...)
	for i, o := range all {
		if !slices.Contains(all[i+1:], o) {
			merged = append(merged, o)
		}
	}
	return merged
}

func (f *file) config() Config {
	c := Config{
		Storage: Storage{
			Root: f.Crio.Root, RunRoot: f.Crio.RunRoot, ImageStore: f.Crio.ImageStore,
			Driver: f.Crio.StorageDriver, Options: f.Crio.StorageOption,
		},
		Listen:         strings.TrimPrefix(f.Crio.API.Listen, "unix://"),
		DefaultRuntime: f.Crio.Runtime.DefaultRuntime,
		Handlers:       make(map[string]Handler, len(f.Crio.Runtime.Runtimes)),
		Image: Image{
			GlobalAuthFile:     f.Crio.Image.GlobalAuthFile,
			SignaturePolicy:    f.Crio.Image.SignaturePolicy,
			SignaturePolicyDir: f.Crio.Image.SignaturePolicyDir,
			InsecureRegistries: f.Crio.Image.InsecureRegistries,
			ImageVolumes:       f.Crio.Image.ImageVolumes,
		},
	}
	for name, h := range f.Crio.Runtime.Runtimes {
		c.Handlers[name] = Handler{Path: h.Path, Type: h.Type, ConfigPath: h.ConfigPath, PullImage: h.PullImage}
	}
	return c
}

// GuestPullHandlers returns the names of the guest-pull handlers, sorted.
func (c Config) GuestPullHandlers() []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(c.Handlers)) {
		if c.Handlers[name].GuestPull() {
			names = append(names, name)
		}
	}
	return names
}
