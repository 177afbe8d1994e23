package podnet

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// network is a configuration file, as ocicni reads it.
type network struct {
	name string
	file string
	// unusable says why ocicni leaves it out; nil when it does not.
	unusable error
}

// Networks returns the names of the networks that pods can be attached to, the default
// first if it is one of them, the others in the order of their files. It asks each
// plugin for its version, for no longer than ctx and half a minute.
func (c Config) Networks(ctx context.Context) ([]string, error) {
	c = c.filled()
	all, err := c.load(ctx)
	if err != nil {
		return nil, errdefs.New(kindOf(err), "list the CNI networks in "+c.ConfDir, err)
	}
	return c.usable(all), nil
}

// usable names the networks without those that ocicni leaves out, the default first.
func (c Config) usable(all []network) []string {
	var names []string
	for _, n := range all {
		if n.unusable == nil && !slices.Contains(names, n.name) {
			names = append(names, n.name)
		}
	}
	if at := slices.Index(names, c.DefaultNetwork); at > 0 {
		names = slices.Insert(slices.Delete(names, at, at+1), 0, c.DefaultNetwork)
	}
	return names
}

// missing says why a pod cannot be attached to the network of this name, "" for the
// default, or nil if it can, or if that cannot be told. known: it is configured, and
// only cannot be used.
func (c Config) missing(ctx context.Context, name string) (why error, known bool) {
	all, err := c.load(ctx)
	if err != nil {
		return nil, true //nolint:nilerr // the answer is that it cannot be told
	}
	if name == "" {
		name = c.DefaultNetwork
	}
	names := c.usable(all)
	switch {
	case name == "" && len(names) > 0, slices.Contains(names, name):
		return nil, true
	case name == "":
		why = fmt.Errorf("no CNI network is configured in %s", c.ConfDir)
	default:
		why = fmt.Errorf("no CNI network %q in %s, which has: %s", name, c.ConfDir, strings.Join(names, ", "))
	}
	for _, n := range all {
		if n.unusable != nil && (name == "" || n.name == "" || n.name == name) {
			why = fmt.Errorf("%w; %s cannot be used: %w", why, n.file, n.unusable)
			known = known || n.name != ""
		}
	}
	return why, known
}

// load reads the files as ocicni does (loadNetworks), which does not tell what it found.
func (c Config) load(ctx context.Context) ([]network, error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	return bounded(ctx, ofVersion, func() ([]network, error) {
		files, err := libcni.ConfFiles(c.ConfDir, []string{".conf", ".conflist", ".json"})
		if err != nil {
			return nil, err
		}
		slices.Sort(files)
		asker := libcni.NewCNIConfigWithCacheDir(c.PluginDirs, c.CacheDir,
			&invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: io.Discard}, PluginDecoder: version.PluginDecoder{}})
		all := make([]network, 0, len(files))
		for _, file := range files {
			n := network{file: file}
			var list *libcni.NetworkConfigList
			if list, n.unusable = read(file); n.unusable == nil {
				n.name = list.Name
				// Not with ctx, at whose end the plugin alone would be killed, and its children
				// be nobody's: bounded kills them all.
				_, n.unusable = asker.ValidateNetworkList(context.WithoutCancel(ctx), list)
			}
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			all = append(all, n)
		}
		return all, nil
	})
}

// read returns a file's list of plugins; a plugin alone is a list of one.
func read(file string) (*libcni.NetworkConfigList, error) {
	if filepath.Ext(file) == ".conflist" {
		list, err := libcni.ConfListFromFile(file)
		if err == nil && len(list.Plugins) == 0 {
			return nil, fmt.Errorf("no plugins in the list")
		}
		return list, err
	}
	conf, err := libcni.ConfFromFile(file) //nolint:staticcheck // deprecated, and what ocicni reads such files by
	if err != nil {
		return nil, err
	}
	if conf.Network.Type == "" {
		return nil, fmt.Errorf("no type")
	}
	return libcni.ConfListFromConf(conf) //nolint:staticcheck // as above
}
