// Package crioconf reads the parts of CRI-O's configuration that Husk must agree
// with: crio.conf and its drop-ins, merged exactly as CRI-O 1.34 merges them
// (pkg/config, UpdateFromFile and UpdateFromPath). Nothing that crio.conf says is
// configured a second time in Husk. What CRI-O is told by flags or CONTAINER_*
// variables of its own, which win over the files, cannot be seen from here.
package crioconf

import (
	"maps"
	"path/filepath"
	"slices"
	"time"
)

// CRI-O's own defaults (pkg/config, DefaultConfig).
const (
	// DefaultFile is where CRI-O keeps its configuration.
	DefaultFile = "/etc/crio/crio.conf"
	// DefaultDir is where CRI-O keeps its drop-ins.
	DefaultDir = "/etc/crio/crio.conf.d"

	defaultListen        = "/var/run/crio/crio.sock"
	defaultRuntime       = "crun"
	defaultPolicyDir     = "/etc/crio/policies"
	runtimeTypeVM        = "vm"
	huskShim             = "containerd-shim-husk-v2"
	defaultImageVolumes  = "mkdir"
	defaultPauseImage    = "registry.k8s.io/pause:3.10"
	defaultMessageBytes  = 80 << 20
	defaultTracing       = "127.0.0.1:4317"
	defaultCgroupManager = "systemd"
	// defaultNamespacedAuthDir is the default of the releases that have the key.
	defaultNamespacedAuthDir = "/etc/crio/auth"
	defaultNetworkDir        = "/etc/cni/net.d/"
	defaultPluginDir         = "/opt/cni/bin/"
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
	// Network is the CNI configuration that pods are attached by.
	Network Network
	// GRPC holds the message sizes of CRI-O's API.
	GRPC GRPC
	// Tracing is where CRI-O sends its spans.
	Tracing Tracing
	// CgroupManager is "systemd" or "cgroupfs": how cgroup names are to be read.
	CgroupManager string
	// InternalWipe removes containers and images after a reboot or an upgrade.
	InternalWipe bool
	// InternalRepair checks storage after an unclean shutdown and removes what is damaged.
	InternalRepair bool
	// Files are the files that were read, in the order they were merged.
	Files []string
	// Origins says which of them set what.
	Origins Origins
}

// Origins lists for each key, written "crio.image.signature_policy", the files that
// set it, in the order they were merged. A key that no file sets has CRI-O's default.
type Origins map[string][]string

// Last returns the file whose value of key counts, or "".
func (o Origins) Last(key string) string {
	files := o[key]
	if len(files) == 0 {
		return ""
	}
	return files[len(files)-1]
}

// GRPC holds the limits of [crio.api], in bytes and never zero.
type GRPC struct {
	MaxSendBytes int
	MaxRecvBytes int
}

// Tracing is [crio.tracing].
type Tracing struct {
	// Enabled is enable_tracing.
	Enabled bool
	// Endpoint is the collector's gRPC address, "127.0.0.1:4317".
	Endpoint string
	// SamplingPerMillion is how many of a million spans are kept.
	SamplingPerMillion int
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
func (h Handler) ResolvesNames() bool { return h.isHusk() }

// PullsLayers reports whether the shims of this handler pull an image's layers when they
// are asked to, before a container is made of it (pkg/api/shim/v1). Only Husk's do.
func (h Handler) PullsLayers() bool { return h.GuestPull() && h.isHusk() }

func (h Handler) isHusk() bool { return filepath.Base(h.Path) == huskShim }

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
	// PullProgressTimeout ends a pull that made no progress for so long. Zero: none does.
	PullProgressTimeout time.Duration
	// SeparatePullCgroup is the cgroup that pulls run in: "" is CRI-O's own, "pod"
	// the pod's.
	SeparatePullCgroup string
	// NamespacedAuthDir is where crio-credential-provider leaves the auth files
	// NAMESPACE-SHA256.json, for CRI-O newer than 1.34.0.
	NamespacedAuthDir string
	// ShortNameMode is "enforcing" or "disabled", for CRI-O newer than 1.34.0. Empty:
	// not said; 1.34.0 knows no other mode than "disabled".
	ShortNameMode string
	// PauseImage is the image of a pod's own container.
	PauseImage string
	// PinnedImages are never removed by kubelet: names, or patterns with "*".
	PinnedImages []string
}

// Network is [crio.network].
type Network struct {
	// Dir is network_dir, with the CNI network configurations.
	Dir string
	// PluginDirs are plugin_dirs, in which the CNI plugins are looked up in this order,
	// with the deprecated plugin_dir last.
	PluginDirs []string
	// DefaultNetwork is cni_default_network: the name of the network of a pod. Empty:
	// that of the first file in Dir.
	DefaultNetwork string
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

// Diff lists the keys, sorted, whose change from old to next takes effect only when
// husk is started again: those of the storage it has opened and of the CRI-O it talks to.
func Diff(old, next Config) []string {
	changed := map[string]bool{
		"crio.root":                                      next.Storage.Root != old.Storage.Root,
		"crio.runroot":                                   next.Storage.RunRoot != old.Storage.RunRoot,
		"crio.imagestore":                                next.Storage.ImageStore != old.Storage.ImageStore,
		"crio.storage_driver":                            next.Storage.Driver != old.Storage.Driver,
		"crio.storage_option":                            !slices.Equal(next.Storage.Options, old.Storage.Options),
		"crio.api.listen":                                next.Listen != old.Listen,
		"crio.api.grpc_max_send_msg_size":                next.GRPC.MaxSendBytes != old.GRPC.MaxSendBytes,
		"crio.api.grpc_max_recv_msg_size":                next.GRPC.MaxRecvBytes != old.GRPC.MaxRecvBytes,
		"crio.tracing.enable_tracing":                    next.Tracing.Enabled != old.Tracing.Enabled,
		"crio.tracing.tracing_endpoint":                  next.Tracing.Endpoint != old.Tracing.Endpoint,
		"crio.tracing.tracing_sampling_rate_per_million": next.Tracing.SamplingPerMillion != old.Tracing.SamplingPerMillion,
	}
	var keys []string
	for _, key := range slices.Sorted(maps.Keys(changed)) {
		if changed[key] {
			keys = append(keys, key)
		}
	}
	return keys
}
