// Package podnet gives a pod its network without CRI-O: a network namespace, what the
// node's CNI configuration attaches to it (by ocicni, as CRI-O does), and the files in
// which its containers look up names.
package podnet

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/cri-o/ocicni/pkg/ocicni"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// DefaultCacheDir is where Husk keeps what it has attached, through a reboot. It is not
// CRI-O's /var/lib/cni: CRI-O deletes at its start what that holds of pods it does not
// know (CNI's GC), and would take the network from under Husk's.
const DefaultCacheDir = "/var/lib/husk/cni"

const defaultNamespace = "default"

// Limits on the time that CNI plugins take: they are programs of others, which wait for
// daemons, for locks and for DHCP servers that may never answer.
const (
	setUpTimeout    = 2 * time.Minute
	tearDownTimeout = time.Minute
	undoTimeout     = 15 * time.Second
	listTimeout     = 30 * time.Second
	// grace is what plugins get to end by themselves when the caller no longer wants the
	// pod: one that is killed half way may leave behind what its DEL cannot find.
	grace = 5 * time.Second
)

// Config is the node's CNI configuration. The zero value is CRI-O's default.
type Config struct {
	// ConfDir holds the network configurations. Empty: /etc/cni/net.d.
	ConfDir string
	// PluginDirs are where plugins are looked for, in this order. Empty: /opt/cni/bin.
	PluginDirs []string
	// CacheDir keeps what was attached, to detach it even if the configuration has changed
	// since. Empty: [DefaultCacheDir].
	CacheDir string
	// DefaultNetwork is the network of a pod that names none. Empty: that of the first
	// file in ConfDir.
	DefaultNetwork string
}

// Attachment is a pod in a network.
type Attachment struct {
	// PodID identifies the pod to the plugins, and its lease of an address.
	PodID string
	// Name and Namespace are told to the plugins. Namespace: empty is "default".
	Name, Namespace string
	// Netns is the path of the pod's network namespace.
	Netns string
	// Network is the name of the CNI network. Empty: the default.
	Network string
}

// Result is how a pod is attached.
type Result struct {
	// IPs are the pod's addresses; a network may give none.
	IPs []netip.Addr
	// Network is the name of the network, also if the attachment names none.
	Network string
}

// SetUp attaches the pod and returns its addresses. If that fails it detaches it again;
// what cannot be detached, because a plugin fails at that too, is told in the error and
// is for a later TearDown. A network that is not configured is errdefs.NotFound; a
// namespace that is none, a name that plugins cannot be told or a pod that is attached
// already is errdefs.InvalidArgument. Plugins that run when ctx ends get a few seconds
// to complete; more than two minutes they never get (errdefs.DeadlineExceeded).
func (c Config) SetUp(ctx context.Context, a Attachment) (Result, error) {
	op := "attach pod " + a.PodID + " to the network"
	c = c.filled()
	if err := a.check(); err != nil {
		return Result{}, errdefs.New(errdefs.InvalidArgument, op, err)
	}
	switch is, err := isNamespace(a.Netns); {
	case err != nil:
		return Result{}, errdefs.New(errdefs.InvalidArgument, op, err)
	case !is:
		return Result{}, errdefs.Newf(errdefs.InvalidArgument, op, "%s is no network namespace", a.Netns)
	}
	attached, err := c.cached(a.PodID)
	if err != nil {
		return Result{}, errdefs.New(errdefs.Internal, op, err)
	}
	if attached { // what undoes a failure would take the network of a pod that runs
		return Result{}, errdefs.Newf(errdefs.InvalidArgument, op, "it is attached already")
	}
	bound, cancel := context.WithTimeout(ctx, setUpTimeout)
	defer cancel()
	plugin, err := c.plugin(bound)
	if err != nil {
		return Result{}, errdefs.New(kindOf(err), op, err)
	}
	result, err := add(bound, plugin, a)
	if err == nil {
		return result, nil
	}
	if why, _ := c.missing(bound, a.Network); why != nil { // then nothing was attached
		return Result{}, errdefs.New(errdefs.NotFound, op, why)
	}
	undo, cancelUndo := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancelUndo()
	if undone := c.TearDown(undo, a); undone != nil {
		return Result{}, errdefs.New(kindOf(err), op, errors.Join(err, undone))
	}
	return Result{}, errdefs.New(kindOf(err), op, err)
}

// add calls the plugins' ADD and reads what they answer.
func add(ctx context.Context, plugin ocicni.CNIPlugin, a Attachment) (Result, error) {
	pod := a.pod(plugin.GetDefaultNetworkName())
	patient, cancel := outlive(ctx, grace)
	defer cancel()
	results, err := bounded(patient, ofPod(a.PodID), func() ([]ocicni.NetResult, error) {
		return plugin.SetUpPodWithContext(patient, pod)
	})
	if err != nil && ctx.Err() != nil { // whatever a killed plugin says
		return Result{}, ctx.Err()
	}
	if err != nil {
		return Result{}, err
	}
	var got Result
	for _, r := range results {
		answer, err := current.GetResult(r.Result)
		if err != nil {
			return Result{}, err
		}
		got.Network = r.Name
		for _, ip := range answer.IPs {
			if addr, ok := netip.AddrFromSlice(ip.Address.IP); ok {
				got.IPs = append(got.IPs, addr.Unmap())
			}
		}
	}
	return got, nil
}

// TearDown detaches the pod and gives its addresses back. It may be called again, for a
// pod that was never attached, and when the namespace is gone: then what plugins keep
// outside of it is still cleared. After an error it must be called again, or addresses
// stay leased. When ctx ends, or after a minute, plugins are killed.
func (c Config) TearDown(ctx context.Context, a Attachment) error {
	op := "detach pod " + a.PodID + " from the network"
	c = c.filled()
	if err := a.check(); err != nil {
		return errdefs.New(errdefs.InvalidArgument, op, err)
	}
	bound, cancel := context.WithTimeout(ctx, tearDownTimeout)
	defer cancel()
	if is, err := isNamespace(a.Netns); err == nil && !is {
		a.Netns = "" // which plugins understand; at a file that is no namespace they fail
	}
	plugin, err := c.plugin(bound)
	if err != nil {
		return errdefs.New(kindOf(err), op, err)
	}
	_, err = bounded(bound, ofPod(a.PodID), func() (struct{}, error) {
		return struct{}{}, plugin.TearDownPodWithContext(bound, a.pod(plugin.GetDefaultNetworkName()))
	})
	if err == nil {
		return nil
	}
	attached, cacheErr := c.cached(a.PodID)
	if _, known := c.missing(bound, a.Network); cacheErr == nil && !attached && !known {
		return nil // of a network that is no more, and nothing is known of the pod
	}
	return errdefs.New(kindOf(err), op, errors.Join(err, cacheErr))
}

// filled is c with the defaults that ocicni would take, and Husk's own.
func (c Config) filled() Config {
	if c.ConfDir == "" {
		c.ConfDir = ocicni.DefaultConfDir
	}
	if len(c.PluginDirs) == 0 {
		c.PluginDirs = []string{ocicni.DefaultBinDir}
	}
	if c.CacheDir == "" {
		c.CacheDir = DefaultCacheDir
	}
	return c
}

// cached reports whether the pod is attached to anything, by what libcni keeps.
func (c Config) cached(podID string) (bool, error) {
	found, err := filepath.Glob(filepath.Join(c.CacheDir, "results", "*-"+podID+"-*"))
	return len(found) > 0, err
}

// kindOf is the kind of a plugin's failure: of the time that ran out, else internal.
func kindOf(err error) errdefs.Kind {
	switch {
	case errors.Is(err, context.Canceled):
		return errdefs.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return errdefs.DeadlineExceeded
	}
	return errdefs.KindOf(err)
}

// check refuses what would become another argument in CNI_ARGS ("K=V;K=V"), or a path
// in the cache, which has the pod's and the network's name in that of a file.
func (a Attachment) check() error {
	for _, field := range [][2]string{{"pod ID", a.PodID}, {"pod name", a.Name}} {
		if !identifier().MatchString(field[1]) {
			return errors.New(field[0] + " must be of letters, digits, '-', '_' and '.', and begin with one of the first two")
		}
	}
	if a.Namespace != "" && !identifier().MatchString(a.Namespace) {
		return errors.New("pod namespace is no name")
	}
	if strings.ContainsAny(a.Network, "/\x00*?[\\") {
		return errors.New("network name has a character that no network has")
	}
	return nil
}

func identifier() *regexp.Regexp { return regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,252}$`) }

// pod is a as CRI-O fills it (server/sandbox_network.go), with the pod's ID as its UID.
func (a Attachment) pod(network string) ocicni.PodNetwork {
	pod := ocicni.PodNetwork{Name: a.Name, Namespace: a.Namespace, ID: a.PodID, UID: a.PodID, NetNS: a.Netns}
	if pod.Namespace == "" {
		pod.Namespace = defaultNamespace
	}
	if a.Network != "" {
		network, pod.Networks = a.Network, []ocicni.NetAttachment{{Name: a.Network}}
	}
	// Not nil: a plugin with the capability is always told the annotations.
	pod.RuntimeConfig = map[string]ocicni.RuntimeConfig{network: {PodAnnotations: &map[string]string{}}}
	return pod
}
