// Package imagers reads image-rs's configuration, the [image] section of cdh.toml,
// and turns it into the files that containers/image reads.
//
// image-rs understands a part of these files, and some of it differently. Here they
// mean what they mean to containers/image; what would silently mean something else is
// converted or refused. docs/guest.md lists every difference.
package imagers

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/husk-cri/husk/pkg/errdefs"
)

const (
	// DefaultWorkDir is where image-rs keeps what it pulled.
	DefaultWorkDir = "/run/kata-containers/image/"
	// defaultConcurrency is image-rs's number of layers at once.
	defaultConcurrency = 3
	// maxConcurrency bounds the layers at once: each costs a connection and buffers.
	maxConcurrency = 64
	// maxFile bounds a configuration file and a resource of the key broker: both are
	// read into memory, and neither has a reason to be large.
	maxFile = 4 << 20
)

// Config is the [image] section. A field that is not set has its zero value, but for
// WorkDir and Concurrency, which have image-rs's defaults.
type Config struct {
	// WorkDir is where layers and bundles' upper directories are.
	WorkDir string `toml:"work_dir"`
	// PolicyURI and Policy are the signature policy; the URI wins. Neither means
	// that every image is accepted.
	PolicyURI string `toml:"image_security_policy_uri"`
	Policy    string `toml:"image_security_policy"`
	// SigstoreURI and Sigstore say where signatures are; the URI wins.
	SigstoreURI string `toml:"sigstore_config_uri"`
	Sigstore    string `toml:"sigstore_config"`
	// AuthURI is the file with the registries' credentials.
	AuthURI string `toml:"authenticated_registry_credentials_uri"`
	// RegistriesURI and Registries are registries.conf; here the inline table wins.
	RegistriesURI string         `toml:"registry_configuration_uri"`
	Registries    map[string]any `toml:"registry_config"`
	// Concurrency is how many layers of one image are fetched at once.
	Concurrency int `toml:"max_concurrent_layer_downloads_per_image"`
	// Proxy is used for every registry.
	Proxy Proxy `toml:"image_pull_proxy"`
	// ExtraRoots are certificates of CAs, in PEM, beside the system's.
	ExtraRoots []string `toml:"extra_root_certificates"`
	// AnonymousFallback is newer than the rest, and is not done: see Warnings.
	AnonymousFallback bool `toml:"anonymous_fallback_on_unauthorized"`

	// Warnings say what of the file has no effect.
	Warnings []string `toml:"-"`
}

// Proxy is how registries are reached; an empty field leaves the environment's.
type Proxy struct {
	HTTPS string `toml:"https_proxy"`
	HTTP  string `toml:"http_proxy"`
	No    string `toml:"no_proxy"`
}

// Read returns the [image] section of the file, or where there is no such section or
// no such file, what the kernel parameters in cmdline (usually /proc/cmdline) say. A
// file that is not valid is InvalidArgument.
func Read(file, cmdline string) (Config, error) {
	op := "read " + file
	data, err := readFile(file)
	if errors.Is(err, os.ErrNotExist) || file == "" {
		return fromKernel(cmdline)
	}
	if err != nil {
		return Config{}, errdefs.New(errdefs.KindOf(err), op, err)
	}
	var doc struct {
		Image *toml.Primitive `toml:"image"`
	}
	meta, err := toml.Decode(string(data), &doc)
	if err != nil {
		return Config{}, errdefs.Newf(errdefs.InvalidArgument, op, "%w", parseError(err))
	}
	if doc.Image == nil {
		return fromKernel(cmdline)
	}
	conf := defaults()
	if err := meta.PrimitiveDecode(*doc.Image, &conf); err != nil {
		return Config{}, errdefs.Newf(errdefs.InvalidArgument, op, "section image: %w", parseError(err))
	}
	conf.warn(meta)
	return conf, conf.check(op)
}

// parseError is the position and the reason alone: the text around it may hold a secret.
func parseError(err error) error {
	var parse toml.ParseError
	if errors.As(err, &parse) {
		return fmt.Errorf("line %d: not valid TOML", parse.Position.Line)
	}
	return err
}

func defaults() Config { return Config{WorkDir: DefaultWorkDir, Concurrency: defaultConcurrency} }

// warn notes what image-rs would act upon, or a user expect to act, and nothing does.
func (c *Config) warn(meta toml.MetaData) {
	for _, key := range meta.Undecoded() {
		if len(key) == 2 && key[0] == "image" {
			c.Warnings = append(c.Warnings, fmt.Sprintf("key %s of [image] is not known, and has no effect", key[1]))
		}
	}
	if c.AnonymousFallback {
		c.Warnings = append(c.Warnings, "anonymous_fallback_on_unauthorized is not done: a registry that refuses the credentials fails the pull")
	}
	if c.Policy == "" && c.PolicyURI == "" {
		c.Warnings = append(c.Warnings, "no image_security_policy: every image is accepted")
	}
}

func (c *Config) check(op string) error {
	if !strings.HasPrefix(c.WorkDir, "/") {
		return errdefs.Newf(errdefs.InvalidArgument, op, "work_dir %q is not an absolute path", c.WorkDir)
	}
	if c.Concurrency < 1 || c.Concurrency > maxConcurrency {
		return errdefs.Newf(errdefs.InvalidArgument, op, "max_concurrent_layer_downloads_per_image %d is not in 1-%d", c.Concurrency, maxConcurrency)
	}
	return nil
}

// fromKernel reads the kernel parameters that image-rs takes where it has no file.
func fromKernel(cmdline string) (Config, error) {
	conf := defaults()
	data, err := readFile(cmdline)
	if err != nil {
		return Config{}, errdefs.New(errdefs.KindOf(err), "read kernel parameters", err)
	}
	params := map[string]string{}
	for _, field := range strings.Fields(string(data)) {
		if name, value, ok := strings.Cut(field, "="); ok {
			params[name] = value
		}
	}
	conf.Proxy = Proxy{HTTPS: params["agent.https_proxy"], HTTP: params["agent.http_proxy"], No: params["agent.no_proxy"]}
	conf.AuthURI = params["agent.image_registry_auth"]
	// As in Rust's bool: "1" is not true.
	if params["agent.enable_signature_verification"] == strconv.FormatBool(true) {
		conf.PolicyURI = params["agent.image_policy_file"]
	} else if params["agent.image_policy_file"] != "" {
		conf.Warnings = append(conf.Warnings, "agent.image_policy_file has no effect without agent.enable_signature_verification=true")
	}
	if conf.PolicyURI == "" {
		conf.Warnings = append(conf.Warnings, "no image policy: every image is accepted")
	}
	return conf, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = errdefs.Newf(errdefs.TooLarge, "read "+path, "over %d bytes", maxFile)
	}
	return data, err
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
