package shim

import (
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"github.com/husk-cri/husk/internal/shim/pod"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/layerpull/policy"
)

// DefaultConfigPath is read when CRI-O's handler has no runtime_config_path.
const DefaultConfigPath = "/etc/husk/shim.toml"

const (
	defaultRuntime     = "runc"
	defaultRuntimeRoot = pod.DefaultStateDir + "/runc"
	defaultStoreSize   = "50%"
	// defaultStoreDir is on a disk, unlike [pod.DefaultStateDir].
	defaultStoreDir = "/var/lib/husk/pods"
	// defaultExitsDir is CRI-O's default for container_exits_dir.
	defaultExitsDir = "/var/run/crio/exits"
	// defaultPullTimeout ends a pull that hangs. A longer one would have no effect:
	// CRI-O gives up, and stops the pull, after four minutes (ContainerCreateTimeout).
	defaultPullTimeout = 4 * time.Minute
	// maxConfig bounds the configuration file: a path that leads to something else
	// must not be read into memory.
	maxConfig = 1 << 20
)

// Config is the shim's configuration: a TOML file whose path is the handler's
// runtime_config_path. The zero value of each field is usable, and a missing file
// at the default path is the zero Config. Unknown keys are an error.
type Config struct {
	// Runtime is the OCI runtime, a path or a name to find in PATH; empty is runc.
	Runtime string `toml:"runtime"`
	// RuntimeRoot is the runtime's state directory; empty is /run/husk/runc.
	RuntimeRoot string `toml:"runtime_root"`
	// Store is where the pod's layers, and what its containers write, are kept:
	// "memory" or "disk"; empty is in memory. On a disk, decrypted layers are too.
	Store string `toml:"store"`
	// StoreDir holds the stores on disk, a directory for each pod; empty is
	// /var/lib/husk/pods. Nobody but root may write to it.
	StoreDir string `toml:"store_dir"`
	// StoreSize bounds the pod's store, as "512m", "2g" or "25%"; empty is half. In
	// memory the percentage is of the memory limit that holds for the pod, without one
	// of the machine's memory. On disk it is of the file system, and the bound is on
	// the layers, not on what the containers write.
	StoreSize string `toml:"store_size"`
	// KeysDir holds the private keys for encrypted layers; empty is none.
	KeysDir string `toml:"keys_dir"`
	// KeyProviders is an ocicrypt_keyprovider.conf: who unwraps the keys that the
	// files do not; empty is nobody.
	KeyProviders string `toml:"key_providers"`
	// ImageRules say which images may run, by encryption and signature, beyond what
	// the policy says; the zero value refuses none.
	ImageRules policy.Config `toml:"image_rules"`
	// AuthFile, Policy, RegistriesConf, RegistriesConfDir, RegistriesD and CertsDir
	// are the files of containers/image; empty is its default.
	AuthFile          string `toml:"auth_file"`
	Policy            string `toml:"policy"`
	RegistriesConf    string `toml:"registries_conf"`
	RegistriesConfDir string `toml:"registries_conf_dir"`
	RegistriesD       string `toml:"registries_d"`
	CertsDir          string `toml:"certs_dir"`
	// PullTimeout ends a pull, as "90s" or "10m"; empty is four minutes.
	PullTimeout duration `toml:"pull_timeout"`
	// ExitsDir is CRI-O's container_exits_dir; empty is CRI-O's default. By it CRI-O
	// learns of exits that it does not wait for, those of containers that are older
	// than itself.
	ExitsDir string `toml:"exits_dir"`
}

// duration is a time.Duration that TOML writes as a string.
type duration time.Duration

// UnmarshalText reads "90s".
func (d *duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return err
	}
	if v < 0 {
		return fmt.Errorf("%s is negative", v)
	}
	*d = duration(v)
	return nil
}

// LoadConfig reads the configuration and puts the defaults in. An empty path is
// [DefaultConfigPath], which need not exist.
func LoadConfig(path string) (Config, error) {
	name := path
	if name == "" {
		name = DefaultConfigPath
	}
	op := "read the shim's configuration " + name
	data, err := pod.ReadFile(name, maxConfig)
	if path == "" && errors.Is(err, fs.ErrNotExist) {
		data, err = nil, nil
	}
	if err != nil {
		return Config{}, errdefs.New(errdefs.InvalidArgument, op, err)
	}
	var c Config
	meta, err := toml.Decode(string(data), &c)
	if err != nil {
		return Config{}, errdefs.New(errdefs.InvalidArgument, op, err)
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		names := make([]string, len(unknown))
		for i, key := range unknown {
			names[i] = key.String()
		}
		return Config{}, errdefs.Newf(errdefs.InvalidArgument, op, "unknown keys: %s", strings.Join(names, ", "))
	}
	if c, err = c.withDefaults(); err != nil {
		return Config{}, errdefs.New(errdefs.InvalidArgument, op, err)
	}
	return c, nil
}

func (c Config) withDefaults() (Config, error) {
	set := func(field *string, value string) {
		if *field == "" {
			*field = value
		}
	}
	set(&c.Runtime, defaultRuntime)
	set(&c.RuntimeRoot, defaultRuntimeRoot)
	set(&c.Store, storeInMemory)
	set(&c.StoreDir, defaultStoreDir)
	set(&c.StoreSize, defaultStoreSize)
	set(&c.ExitsDir, defaultExitsDir)
	if c.PullTimeout == 0 {
		c.PullTimeout = duration(defaultPullTimeout)
	}
	if c.Store != storeInMemory && c.Store != storeOnDisk {
		return Config{}, fmt.Errorf("store: %q is neither %q nor %q", c.Store, storeInMemory, storeOnDisk)
	}
	if _, err := parseSize(c.StoreSize); err != nil {
		return Config{}, fmt.Errorf("store_size: %w", err)
	}
	if err := c.ImageRules.Validate(); err != nil {
		return Config{}, err
	}
	runtime, err := exec.LookPath(c.Runtime)
	if err != nil {
		return Config{}, fmt.Errorf("runtime: %w", err)
	}
	c.Runtime = runtime
	for key, path := range map[string]string{
		"runtime": c.Runtime, "runtime_root": c.RuntimeRoot, "keys_dir": c.KeysDir, "key_providers": c.KeyProviders, "auth_file": c.AuthFile, "policy": c.Policy,
		"registries_conf": c.RegistriesConf, "registries_conf_dir": c.RegistriesConfDir, "registries_d": c.RegistriesD,
		"certs_dir": c.CertsDir, "exits_dir": c.ExitsDir, "store_dir": c.StoreDir,
	} {
		if path != "" && !filepath.IsAbs(path) {
			return Config{}, fmt.Errorf("%s: %q is not absolute", key, path)
		}
	}
	return c, nil
}
