package crioconf

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
)

// file is the shape of crio.conf, limited to what Husk reads.
type file struct {
	Crio struct {
		Root           string   `toml:"root"`
		RunRoot        string   `toml:"runroot"`
		ImageStore     string   `toml:"imagestore"`
		StorageDriver  string   `toml:"storage_driver"`
		StorageOption  []string `toml:"storage_option"`
		InternalWipe   bool     `toml:"internal_wipe"`
		InternalRepair bool     `toml:"internal_repair"`
		API            struct {
			Listen       string `toml:"listen"`
			MaxSendBytes int    `toml:"grpc_max_send_msg_size"`
			MaxRecvBytes int    `toml:"grpc_max_recv_msg_size"`
		} `toml:"api"`
		Runtime struct {
			DefaultRuntime     string              `toml:"default_runtime"`
			CgroupManager      string              `toml:"cgroup_manager"`
			SeparatePullCgroup string              `toml:"separate_pull_cgroup"`
			Runtimes           map[string]*handler `toml:"runtimes"`
		} `toml:"runtime"`
		Image struct {
			GlobalAuthFile      string        `toml:"global_auth_file"`
			NamespacedAuthDir   string        `toml:"namespaced_auth_dir"`
			PauseImage          string        `toml:"pause_image"`
			PinnedImages        []string      `toml:"pinned_images"`
			SignaturePolicy     string        `toml:"signature_policy"`
			SignaturePolicyDir  string        `toml:"signature_policy_dir"`
			InsecureRegistries  []string      `toml:"insecure_registries"`
			ImageVolumes        string        `toml:"image_volumes"`
			PullProgressTimeout time.Duration `toml:"pull_progress_timeout"`
			ShortNameMode       string        `toml:"short_name_mode"`
		} `toml:"image"`
		Network struct {
			DefaultNetwork string   `toml:"cni_default_network"`
			Dir            string   `toml:"network_dir"`
			PluginDir      string   `toml:"plugin_dir"`
			PluginDirs     []string `toml:"plugin_dirs"`
		} `toml:"network"`
		Tracing struct {
			Enabled            bool   `toml:"enable_tracing"`
			Endpoint           string `toml:"tracing_endpoint"`
			SamplingPerMillion int    `toml:"tracing_sampling_rate_per_million"`
		} `toml:"tracing"`
	} `toml:"crio"`
}

type handler struct {
	Path       string `toml:"runtime_path"`
	Type       string `toml:"runtime_type"`
	ConfigPath string `toml:"runtime_config_path"`
	PullImage  bool   `toml:"runtime_pull_image"`
	Inherit    bool   `toml:"inherit_default_runtime"`
}

// source is a file that has been read.
type source struct {
	name string
	data []byte
}

// Load reads path, then every file below dir in lexical order. A missing dir is
// an empty one; a missing path is too when it is [DefaultFile], as for CRI-O.
// system is what storage.conf says: it holds where crio.conf says nothing, and its
// options come before those of crio.conf. An error of a file's content is a [Problem].
func Load(path, dir string, system Storage) (Config, error) {
	files, err := dropIns(dir)
	if err != nil {
		return Config{}, err
	}
	if _, err := os.Stat(path); path != DefaultFile || !errors.Is(err, fs.ErrNotExist) {
		files = append([]string{path}, files...)
	}
	sources := make([]source, 0, len(files))
	for _, name := range files {
		data, err := ReadFile(name)
		if err != nil {
			return Config{}, fmt.Errorf("read CRI-O configuration: %w", ReadProblem(name, err))
		}
		sources = append(sources, source{name, data})
	}
	return merge(sources, system)
}

// merge decodes the sources one over the other, as CRI-O does.
func merge(sources []source, system Storage) (Config, error) {
	f, files, origins := defaults(system), make([]string, 0, len(sources)), Origins{}
	for _, s := range sources {
		keys, err := f.add(s)
		if err != nil {
			return Config{}, err
		}
		files = append(files, s.name)
		for _, key := range keys {
			origins[key] = append(origins[key], s.name)
		}
	}
	f.inherit()
	c := f.config()
	c.Files, c.Origins = files, origins
	return c, nil
}

// defaults is what CRI-O does without any file.
func defaults(system Storage) *file {
	f := new(file)
	f.Crio.Root, f.Crio.RunRoot, f.Crio.ImageStore = system.Root, system.RunRoot, system.ImageStore
	f.Crio.StorageDriver, f.Crio.StorageOption = system.Driver, system.Options
	f.Crio.InternalWipe, f.Crio.InternalRepair = true, true
	f.Crio.API.Listen = defaultListen
	f.Crio.Runtime.DefaultRuntime = defaultRuntime
	f.Crio.Runtime.CgroupManager = defaultCgroupManager
	// Built into CRI-O: there without any file, and next to those that files add.
	f.Crio.Runtime.Runtimes = map[string]*handler{defaultRuntime: {}}
	f.Crio.Image.SignaturePolicyDir = defaultPolicyDir
	f.Crio.Image.NamespacedAuthDir = defaultNamespacedAuthDir
	f.Crio.Image.ImageVolumes = defaultImageVolumes
	f.Crio.Image.PauseImage = defaultPauseImage
	f.Crio.Network.Dir, f.Crio.Network.PluginDirs = defaultNetworkDir, []string{defaultPluginDir}
	f.Crio.Tracing.Endpoint = defaultTracing
	return f
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

// dropIns lists the files below dir in the order CRI-O reads them.
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

// ReadDir lists the files of dir whose name ends with suffix, in lexical order; hidden
// ones, such as an editor leaves, are not among them. A missing dir is empty; one with
// more than most entries of any name is an error, against what fills it by accident.
func ReadDir(dir, suffix string, most int) (files []string, err error) {
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	entries, err := d.ReadDir(most + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if len(entries) > most {
		return nil, fmt.Errorf("%s holds more than %d files", dir, most)
	}
	for _, e := range entries {
		if name := e.Name(); strings.HasSuffix(name, suffix) && !strings.HasPrefix(name, ".") {
			files = append(files, filepath.Join(dir, name))
		}
	}
	slices.Sort(files)
	return files, nil
}

// ReadFile reads a regular file of at most 1 MiB. It opens nothing else: a FIFO would
// never answer, and what has the name by accident must not fill the memory.
func ReadFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxFileBytes {
		return nil, fmt.Errorf("not a regular file of at most %d bytes", maxFileBytes)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if len(data) > maxFileBytes { // it grew
		return nil, fmt.Errorf("more than %d bytes", maxFileBytes)
	}
	return data, nil
}

// add decodes one file over what is there already and returns the keys it sets.
// Tables are merged, a handler that is named again is replaced whole, and storage
// options add up: that is what CRI-O's own decoding does.
func (f *file) add(s source) ([]string, error) {
	before := *f
	f.Crio.StorageOption = nil
	// Decoding writes into the array of a list that is long enough.
	f.Crio.Image.InsecureRegistries = slices.Clone(before.Crio.Image.InsecureRegistries)
	f.Crio.Image.PinnedImages = slices.Clone(before.Crio.Image.PinnedImages)
	f.Crio.Network.PluginDirs = slices.Clone(before.Crio.Network.PluginDirs)
	meta, err := toml.Decode(string(s.data), f)
	if err != nil {
		return nil, fmt.Errorf("read CRI-O configuration: %w", ParseProblem(s.name, err))
	}
	f.Crio.StorageOption = mergeOptions(before.Crio.StorageOption, f.Crio.StorageOption)
	keep(&f.Crio.Root, before.Crio.Root)
	keep(&f.Crio.RunRoot, before.Crio.RunRoot)
	keep(&f.Crio.StorageDriver, before.Crio.StorageDriver)
	var keys []string
	for _, key := range meta.Keys() {
		keys = append(keys, strings.Join(key, "."))
	}
	return keys, nil
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
	image, runtime, tracing := f.Crio.Image, f.Crio.Runtime, f.Crio.Tracing
	c := Config{
		Storage: Storage{
			Root: f.Crio.Root, RunRoot: f.Crio.RunRoot, ImageStore: f.Crio.ImageStore,
			Driver: f.Crio.StorageDriver, Options: f.Crio.StorageOption,
		},
		Listen:         strings.TrimPrefix(f.Crio.API.Listen, "unix://"),
		DefaultRuntime: runtime.DefaultRuntime,
		Handlers:       make(map[string]Handler, len(runtime.Runtimes)),
		Image: Image{
			GlobalAuthFile:      image.GlobalAuthFile,
			SignaturePolicy:     image.SignaturePolicy,
			SignaturePolicyDir:  image.SignaturePolicyDir,
			InsecureRegistries:  image.InsecureRegistries,
			ImageVolumes:        image.ImageVolumes,
			PullProgressTimeout: image.PullProgressTimeout,
			SeparatePullCgroup:  runtime.SeparatePullCgroup,
			NamespacedAuthDir:   image.NamespacedAuthDir,
			ShortNameMode:       image.ShortNameMode,
			PauseImage:          image.PauseImage,
			PinnedImages:        image.PinnedImages,
		},
		Network:        f.network(),
		GRPC:           GRPC{MaxSendBytes: messageBytes(f.Crio.API.MaxSendBytes), MaxRecvBytes: messageBytes(f.Crio.API.MaxRecvBytes)},
		Tracing:        Tracing{Enabled: tracing.Enabled, Endpoint: tracing.Endpoint, SamplingPerMillion: tracing.SamplingPerMillion},
		CgroupManager:  runtime.CgroupManager,
		InternalWipe:   f.Crio.InternalWipe,
		InternalRepair: f.Crio.InternalRepair,
	}
	for name, h := range runtime.Runtimes {
		c.Handlers[name] = Handler{Path: h.Path, Type: h.Type, ConfigPath: h.ConfigPath, PullImage: h.PullImage}
	}
	return c
}

// network joins the two keys for plugins as CRI-O does when it starts.
func (f *file) network() Network {
	from := f.Crio.Network
	dirs := slices.Clone(from.PluginDirs)
	if from.PluginDir != "" {
		dirs = append(dirs, from.PluginDir)
	}
	return Network{Dir: from.Dir, PluginDirs: dirs, DefaultNetwork: from.DefaultNetwork}
}

// messageBytes is CRI-O's reading of its limits: what is not positive is the default.
func messageBytes(n int) int {
	if n <= 0 {
		return defaultMessageBytes
	}
	return n
}
