// Package config reads /etc/husk/husk.toml and its drop-ins. Every field has a
// usable zero: an empty file, or none, runs a node whose crio.conf is right.
package config

import (
	"os"
	"strings"
	"time"

	"github.com/husk-cri/husk/internal/crioconf"
)

const (
	// DefaultFile is where the configuration is looked for.
	DefaultFile = "/etc/husk/husk.toml"
	// DropInSuffix makes the name of the drop-in directory from the file's.
	DropInSuffix = ".d"
	// DefaultListen is the socket on which kubelet, crictl and cAdvisor expect CRI-O.
	DefaultListen = "/var/run/crio/crio.sock"
	// DefaultHandoverSocket is where a running husk hands its listening socket over.
	DefaultHandoverSocket = "/run/husk/handover.sock"

	defaultMaxPulls    = 16
	defaultPullTimeout = 2 * time.Minute
	// defaultLayerPullTimeout is what a model of tens of gigabytes takes at 25 MB/s: kubelet
	// sets no deadline, and a pod must not wait for ever for a registry that trickles.
	defaultLayerPullTimeout = 30 * time.Minute
)

// Config is the daemon's configuration. What each field means is said once, in the
// table that [Fields] returns: `husk config` prints it and docs/configuration.md has it.
type Config struct {
	// Listen is the path of the socket husk serves.
	Listen string `toml:"listen" json:"listen"`
	// Backend is the path of CRI-O's socket. Zero: what crio.conf listens on.
	Backend string `toml:"backend" json:"backend"`
	// CrioConfig and CrioConfigDir are CRI-O's configuration.
	CrioConfig    string `toml:"crio_config" json:"crio_config"`
	CrioConfigDir string `toml:"crio_config_dir" json:"crio_config_dir"`
	// RegistriesConf and RegistriesConfDir are what CRI-O was started with. Zero: the system's.
	RegistriesConf    string `toml:"registries_conf" json:"registries_conf"`
	RegistriesConfDir string `toml:"registries_conf_dir" json:"registries_conf_dir"`
	// DefaultHandler is what a pull is for that names neither a pod nor a handler. Zero: CRI-O's default runtime.
	DefaultHandler string `toml:"default_handler" json:"default_handler"`
	// AssumeHandler is whose images a presence check sees that names no handler.
	// Zero: it sees CRI-O's.
	AssumeHandler string `toml:"assume_handler" json:"assume_handler"`
	// MaxPulls is how many metadata pulls run at once.
	MaxPulls int `toml:"max_pulls" json:"max_pulls"`
	// PullTimeout bounds one metadata pull.
	PullTimeout Duration `toml:"pull_timeout" json:"pull_timeout"`
	// LayerPullTimeout bounds one pull of layers in a pod.
	LayerPullTimeout Duration `toml:"layer_pull_timeout" json:"layer_pull_timeout"`
	// MetricsListen is "unix:///PATH" or a loopback "HOST:PORT". Zero: no metrics are served.
	MetricsListen string `toml:"metrics_listen" json:"metrics_listen"`
	// RecordTTL is how long a record stays that nothing uses. Zero: for ever.
	RecordTTL Duration `toml:"record_ttl" json:"record_ttl"`
	// HandoverSocket is where a starting husk takes the listening socket over.
	HandoverSocket string `toml:"handover_socket" json:"handover_socket"`
	// LogLevel is debug, info, warn or error.
	LogLevel string `toml:"log_level" json:"log_level"`
	// LogFormat is text or json.
	LogFormat string `toml:"log_format" json:"log_format"`
	// Handlers holds what Husk knows of a handler beyond crio.conf.
	Handlers map[string]Handler `toml:"handlers" json:"handlers"`
}

// What is present to a pod of Husk's shim: what its own store holds, or every record of
// the node.
const (
	PresencePod  = "pod"
	PresenceNode = "node"
)

// What becomes of an image whose user or group is a name, under a handler.
const (
	// NamedUsersRefuse has the pull refused, unless the pod's securityContext sets the
	// user, and the container.
	NamedUsersRefuse = "refuse"
	// NamedUsersRefuseAtCreate has the container refused alone: kubelet does not tell a
	// pull what the securityContext of the container sets.
	NamedUsersRefuseAtCreate = "refuse-at-create"
	// NamedUsersSandbox leaves the name to the pod, where the image's files are.
	NamedUsersSandbox = "sandbox"
)

// Handler is the entry [handlers.NAME].
type Handler struct {
	// PinDigest tells the guest repo@digest, or the tag when it is false. Zero: true.
	PinDigest *bool `toml:"pin_digest" json:"pin_digest,omitempty"`
	// PullInSandbox fetches the metadata from within the pod's network namespace.
	PullInSandbox bool `toml:"pull_in_sandbox" json:"pull_in_sandbox"`
	// Presence is [PresencePod] or [PresenceNode]: what is present to a pod of Husk's shim.
	// Zero: PresencePod.
	Presence string `toml:"presence" json:"presence,omitempty"`
	// NamedUsers is [NamedUsersRefuse], [NamedUsersRefuseAtCreate] or [NamedUsersSandbox].
	// Zero: NamedUsersSandbox for Husk's shim, NamedUsersRefuse for any other.
	NamedUsers string `toml:"named_users" json:"named_users,omitempty"`
	// EagerPull has layers pulled inside PullImage; false leaves them to the creation of
	// the container. Zero: true where the handler's shim can.
	EagerPull *bool `toml:"eager_pull" json:"eager_pull,omitempty"`
	// MaxImageSize is what the layers of an image may add up to, in bytes as its
	// manifest says them. Zero: no limit.
	MaxImageSize Size `toml:"max_image_size" json:"max_image_size"`
	// MaxLayers is how many layers an image may have. Zero: the hard limit.
	MaxLayers int `toml:"max_layers" json:"max_layers"`
}

// PinDigest reports whether the guest of a handler is told repo@digest.
func (c Config) PinDigest(handler string) bool {
	pin := c.Handlers[handler].PinDigest
	return pin == nil || *pin
}

// NamedUsers returns what becomes of named users under a handler: its setting, or what
// crio.conf's entry for it makes of none.
func (c Config) NamedUsers(name string, crio crioconf.Handler) string {
	switch set := c.Handlers[name].NamedUsers; {
	case set != "":
		return set
	case crio.ResolvesNames():
		return NamedUsersSandbox
	default:
		return NamedUsersRefuse
	}
}

// EagerPull reports whether a handler's layers are pulled inside PullImage, where its
// shim can.
func (c Config) EagerPull(name string) bool {
	eager := c.Handlers[name].EagerPull
	return eager == nil || *eager
}

// defaults fills the fields whose zero stands for another value.
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
	set(&c.HandoverSocket, DefaultHandoverSocket)
	set(&c.LogLevel, "info")
	set(&c.LogFormat, "text")
	for _, path := range []*string{&c.Listen, &c.Backend, &c.HandoverSocket} {
		*path = strings.TrimPrefix(*path, "unix://")
	}
	if c.MaxPulls == 0 {
		c.MaxPulls = defaultMaxPulls
	}
	if c.PullTimeout.Duration == 0 {
		c.PullTimeout.Duration = defaultPullTimeout
	}
	if c.LayerPullTimeout.Duration == 0 {
		c.LayerPullTimeout.Duration = defaultLayerPullTimeout
	}
}
