// Package config reads /etc/husk/husk.toml. Every field has a usable zero: an
// empty file, or none, runs a node whose crio.conf is right.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"github.com/husk-cri/husk/internal/crioconf"
)

// DefaultFile is where the configuration is looked for.
const DefaultFile = "/etc/husk/husk.toml"

// DefaultListen is the socket on which kubelet, crictl and cAdvisor expect CRI-O.
const DefaultListen = "/var/run/crio/crio.sock"

// maxFileBytes bounds the file, against a path that names something else.
const maxFileBytes = 1 << 20

// Config is the daemon's configuration.
type Config struct {
	// Listen is the socket husk serves. Zero: [DefaultListen].
	Listen string `toml:"listen"`
	// Backend is the socket of the CRI-O behind husk. Zero: what crio.conf listens on.
	Backend string `toml:"backend"`
	// CrioConfig and CrioConfigDir are CRI-O's configuration. Zero: /etc/crio/crio.conf and crio.conf.d.
	CrioConfig    string `toml:"crio_config"`
	CrioConfigDir string `toml:"crio_config_dir"`
	// RegistriesConf and RegistriesConfDir are what CRI-O was started with. Zero:
	// the variables CONTAINER_REGISTRIES_CONF and CONTAINER_REGISTRIES_CONF_DIR,
	// else the system's files.
	RegistriesConf    string `toml:"registries_conf"`
	RegistriesConfDir string `toml:"registries_conf_dir"`
	// DefaultHandler is whose a pull is that names no pod and no handler. Zero: CRI-O's default runtime.
	DefaultHandler string `toml:"default_handler"`
	// AssumeHandler answers presence checks that bring no handler with this
	// handler's view, on nodes where every pod uses it. Zero: CRI-O's view.
	AssumeHandler string `toml:"assume_handler"`
	// MaxPulls is how many metadata pulls run at once; more wait. Zero: 16.
	MaxPulls int `toml:"max_pulls"`
	// PullTimeout bounds one metadata pull. Zero: 2 minutes.
	PullTimeout Duration `toml:"pull_timeout"`
	// LogLevel is debug, info, warn or error. Zero: info.
	LogLevel string `toml:"log_level"`
	// LogFormat is text or json. Zero: text.
	LogFormat string `toml:"log_format"`
	// Handlers holds what Husk knows of a handler beyond crio.conf.
	Handlers map[string]Handler `toml:"handlers"`
}

// Handler is the entry [handlers.NAME].
type Handler struct {
	// PinDigest tells the guest repo@digest (the zero) or, when "false" is said,
	// the tag, for guests whose policy matches tags.
	PinDigest *bool `toml:"pin_digest"`
}

// Duration is a time.Duration written as "90s".
type Duration struct{ time.Duration }

// UnmarshalText parses a Go duration.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return err
	}
	if v <= 0 {
		return fmt.Errorf("duration %s is not positive", v)
	}
	d.Duration = v
	return nil
}

// Load reads path. A missing file is an empty one when path is [DefaultFile].
// Keys that mean nothing are refused: a misspelt limit must not be a missing one.
func Load(path string) (Config, error) {
	var c Config
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && path == DefaultFile:
	case err != nil:
		return Config{}, fmt.Errorf("read configuration: %w", err)
	case !info.Mode().IsRegular() || info.Size() > maxFileBytes:
		return Config{}, fmt.Errorf("read configuration %s: not a regular file of at most %d bytes", path, maxFileBytes)
	default:
		meta, err := toml.DecodeFile(path, &c)
		if err != nil {
			return Config{}, fmt.Errorf("parse configuration %s: %w", path, err)
		}
		if unknown := meta.Undecoded(); len(unknown) > 0 {
			return Config{}, fmt.Errorf("parse configuration %s: unknown key %s", path, unknown[0])
		}
	}
	c.defaults()
	return c, c.validate(path)
}

func (c *Config) defaults() {
	set := func(field *string, value string) {
		if *field == "" {
			*field = value
		}
	}
	set(&c.Listen, DefaultListen)
	set(&c.CrioConfig, crioconf.DefaultFile)
	set(&c.CrioConfigDir, crioconf.DefaultDir)
	set(&c.RegistriesConf, os.Getenv("CONTAINER_REGISTRIES_CONF"))
	set(&c.RegistriesConfDir, os.Getenv("CONTAINER_REGISTRIES_CONF_DIR"))
	set(&c.LogLevel, "info")
	set(&c.LogFormat, "text")
	c.Listen = strings.TrimPrefix(c.Listen, "unix://")
	c.Backend = strings.TrimPrefix(c.Backend, "unix://")
	if c.MaxPulls == 0 {
		c.MaxPulls = 16
	}
	if c.PullTimeout.Duration == 0 {
		c.PullTimeout.Duration = 2 * time.Minute
	}
}

func (c *Config) validate(path string) error {
	switch c.LogLevel {
	case "debug", "info", "warn", "error":
	default:
		return fmt.Errorf("configuration %s: log_level %q is none of debug, info, warn, error", path, c.LogLevel)
	}
	switch c.LogFormat {
	case "text", "json":
	default:
		return fmt.Errorf("configuration %s: log_format %q is neither text nor json", path, c.LogFormat)
	}
	if c.MaxPulls < 0 {
		return fmt.Errorf("configuration %s: max_pulls is negative", path)
	}
	return nil
}

// PinDigest reports whether the guest of a handler is told repo@digest.
func (c Config) PinDigest(handler string) bool {
	pin := c.Handlers[handler].PinDigest
	return pin == nil || *pin
}
