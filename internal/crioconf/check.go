package crioconf

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/containers/image/v5/signature"
)

// shimName is what CRI-O wants the file of a "vm" runtime to be called.
var shimName = regexp.MustCompile(`^containerd-shim-[a-zA-Z0-9+-]+-v2$`)

const tablesKey = "crio.runtime.runtimes"

// checker collects problems.
type checker struct {
	config   Config
	problems []Problem
}

// Check names what in c will not work for Husk, and what CRI-O would refuse or
// silently drop of the things Husk needs. It looks at the files that c names, and
// changes nothing. What CRI-O is told by flags or CONTAINER_* variables it cannot see.
func Check(c Config) []Problem {
	k := &checker{config: c}
	if len(c.Files) == 0 {
		k.add("", "install CRI-O, or name its files with crio_config and crio_config_dir in husk.toml",
			"there is no CRI-O configuration: neither this file nor drop-ins")
		return k.problems
	}
	k.storage()
	k.handlers()
	k.image()
	k.cgroups()
	k.network()
	k.tracing()
	return k.problems
}

// add appends a problem of key, in the file that set it last.
func (k *checker) add(key, remedy, format string, args ...any) {
	k.problems = append(k.problems, Problem{File: k.config.Where(key), Key: key, What: fmt.Sprintf(format, args...), Remedy: remedy})
}

// Where returns the file that set key last, or where to write it if none did: where
// its table is.
func (c Config) Where(key string) string {
	for at := key; at != ""; at = at[:max(strings.LastIndexByte(at, '.'), 0)] {
		if file := c.Origins.Last(at); file != "" {
			return file
		}
	}
	if len(c.Files) > 0 {
		return c.Files[0]
	}
	return DefaultFile
}

// storage finds a driver that Husk's containers/storage does not have: it could open
// no store.
func (k *checker) storage() {
	known := storageDrivers()
	if driver := k.config.Storage.Driver; driver != "" && !slices.Contains(known, driver) {
		k.add("crio.storage_driver", "use one of "+strings.Join(known, ", "), "%q is no storage driver that husk can use", driver)
		k.problems[len(k.problems)-1].Fatal = true
	}
}

func (k *checker) handlers() {
	c := k.config
	if _, ok := c.Handlers[c.DefaultRuntime]; !ok {
		k.add("crio.runtime.default_runtime", "add the table ["+tablesKey+"."+c.DefaultRuntime+"] or name another: CRI-O does not start",
			"%q is no handler", c.DefaultRuntime)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Handlers)) {
		h := c.Handlers[name]
		k.lostKeys(name)
		k.unknownKeys(name)
		if h.ConfigPath != "" && h.Type != runtimeTypeVM {
			k.add(k.key(name, "runtime_config_path"), `set runtime_type = "vm" or remove the key: CRI-O drops the handler`,
				"is for handlers of type \"vm\", and %s is of type %q", name, typeName(h))
		}
		if !h.PullImage {
			continue
		}
		if h.Type != runtimeTypeVM {
			k.add(k.key(name, "runtime_pull_image"), `set runtime_type = "vm", or remove the key`,
				"has no effect on a handler of type %q: the host pulls the layers", typeName(h))
			continue
		}
		k.shim(name, h)
	}
	if len(c.GuestPullHandlers()) == 0 {
		k.add(tablesKey, "add one, as contrib/crio/50-husk.conf does",
			"no handler has runtime_pull_image = true and runtime_type = \"vm\": husk only forwards")
	}
}

func (k *checker) key(handler, key string) string { return tablesKey + "." + handler + "." + key }

func typeName(h Handler) string {
	if h.Type == "" {
		return "oci"
	}
	return h.Type
}

// lostKeys finds what a file says of a handler that a later file names again: CRI-O
// takes the later table whole, and what only the earlier one says is gone.
func (k *checker) lostKeys(name string) {
	files := k.config.Origins[tablesKey+"."+name]
	if len(files) < 2 {
		return
	}
	last, prefix := files[len(files)-1], tablesKey+"."+name+"."
	var keys, from []string
	for _, key := range slices.Sorted(maps.Keys(k.config.Origins)) {
		if own, ok := strings.CutPrefix(key, prefix); ok && k.config.Origins.Last(key) != last {
			keys, from = append(keys, own), append(from, k.config.Origins.Last(key))
		}
	}
	if len(keys) == 0 {
		return
	}
	slices.Sort(from)
	k.add(tablesKey+"."+name, "keep each handler in one file, whole: CRI-O takes the last table and merges nothing",
		"is named again here, and loses %s of %s", strings.Join(keys, ", "), strings.Join(slices.Compact(from), ", "))
}

// unknownKeys finds what CRI-O ignores in the table of a handler: a misspelt
// runtime_pull_image would have the host pull.
func (k *checker) unknownKeys(name string) {
	prefix := tablesKey + "." + name + "."
	for _, key := range slices.Sorted(maps.Keys(k.config.Origins)) {
		own, ok := strings.CutPrefix(key, prefix)
		if _, other := k.config.Handlers[name+"."+own]; !ok || other || strings.Contains(own, ".") {
			continue // a dot: of a table within, or of a handler whose name has one
		}
		// The decoder ignores case, CRI-O's too.
		if !slices.ContainsFunc(handlerKeys(), func(known string) bool { return strings.EqualFold(known, own) }) {
			k.add(key, "mend its name, or remove it", "CRI-O 1.34 has no such key and ignores it")
		}
	}
}

// shim checks what CRI-O wants of a "vm" handler: it drops the handler else, and
// pods that name it fail.
func (k *checker) shim(name string, h Handler) {
	path, config := k.key(name, "runtime_path"), k.key(name, "runtime_config_path")
	if h.Path == "" {
		k.add(path, "name the shim", "is missing: CRI-O drops the handler")
		return
	}
	if !shimName.MatchString(filepath.Base(h.Path)) {
		k.add(path, "call the file containerd-shim-NAME-v2", "%s is not named as CRI-O wants a shim: it drops the handler", h.Path)
	}
	info, err := os.Stat(h.Path)
	switch {
	case err != nil:
		k.add(path, "install the shim or mend the path: CRI-O drops the handler", "%s", reason(err))
	case !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0:
		k.add(path, "install the shim there", "%s is no executable file", h.Path)
	}
	if h.ConfigPath == "" {
		return
	}
	if _, err := readable(h.ConfigPath); err != nil {
		k.add(config, "write the file (contrib/crio/shim.toml lists its keys), or remove the key: CRI-O drops the handler", "%s", reason(err))
	}
}

func (k *checker) image() {
	i := k.config.Image
	k.authFile(i.GlobalAuthFile)
	k.policies()
	if i.NamespacedAuthDir != "" && !filepath.IsAbs(i.NamespacedAuthDir) {
		k.add("crio.image.namespaced_auth_dir", "write the whole path", "%s is not absolute", i.NamespacedAuthDir)
	}
	if !slices.Contains([]string{"mkdir", "bind", "ignore"}, i.ImageVolumes) {
		k.add("crio.image.image_volumes", "use mkdir, bind or ignore: CRI-O does not start", "%q is none of CRI-O's kinds", i.ImageVolumes)
	}
	if !slices.Contains([]string{"", "enforcing", "disabled"}, i.ShortNameMode) {
		k.add("crio.image.short_name_mode", "use enforcing or disabled", "%q is no mode", i.ShortNameMode)
	}
	if i.PullProgressTimeout < 0 {
		k.add("crio.image.pull_progress_timeout", `use "0s" for none`, "%s is negative: every pull ends at once", i.PullProgressTimeout)
	}
}

// authFile checks the file without ever showing what is in it.
func (k *checker) authFile(path string) {
	if path == "" {
		return
	}
	const key = "crio.image.global_auth_file"
	data, err := readable(path)
	switch {
	case err != nil:
		k.add(key, "write the file, or remove the key: pulls go without its credentials", "%s", reason(err))
	case !json.Valid(data):
		k.add(key, "write it as containers-auth.json(5) says: every pull fails", "%s is no JSON", path)
	}
}

func (k *checker) policies() {
	i := k.config.Image
	key, remedy := "crio.image.signature_policy", "write it as containers-policy.json(5) says: every pull is refused"
	if i.SignaturePolicy == "" {
		if _, err := signature.DefaultPolicy(nil); err != nil {
			k.add(key, remedy, "not set, and the system's policy cannot be used: %s", reason(err))
		}
	} else if err := policy(i.SignaturePolicy); err != nil {
		k.add(key, remedy, "%s", reason(err))
	}
	key = "crio.image.signature_policy_dir"
	if !filepath.IsAbs(i.SignaturePolicyDir) {
		k.add(key, "write the whole path: CRI-O does not start", "%q is not absolute", i.SignaturePolicyDir)
		return
	}
	names, err := ReadDir(i.SignaturePolicyDir, ".json", maxFiles)
	if err != nil {
		k.add(key, "make it a directory of NAMESPACE.json", "%s", reason(err))
	}
	for _, name := range names {
		if err := policy(name); err != nil {
			k.add(key, "write it as containers-policy.json(5) says: pulls of this namespace are refused", "%s", reason(err))
		}
	}
}

// policy reports why path cannot be used as a signature policy.
func policy(path string) error {
	data, err := readable(path)
	if err != nil {
		return err
	}
	if _, err := signature.NewPolicyFromBytes(data); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func (k *checker) cgroups() {
	if m := k.config.CgroupManager; m != "systemd" && m != "cgroupfs" {
		k.add("crio.runtime.cgroup_manager", "use systemd or cgroupfs: CRI-O does not start", "%q is no cgroup manager", m)
	}
	const key = "crio.runtime.separate_pull_cgroup"
	switch group := k.config.Image.SeparatePullCgroup; {
	case group == "":
	case k.config.CgroupManager != "systemd":
		k.add(key, `set cgroup_manager = "systemd" or remove the key: every pull fails`, "needs the systemd cgroup manager")
	case group != "pod" && !strings.Contains(group, ".slice"):
		k.add(key, `use "pod" or the name of a slice: every pull fails`, "%q is no systemd slice", group)
	}
}

// network finds what keeps CRI-O from starting. A directory that is not there it makes,
// and one without configurations it waits for.
func (k *checker) network() {
	n := k.config.Network
	if n.Dir == "" {
		k.add("crio.network.network_dir", "name the directory: CRI-O does not start", "is empty")
	} else {
		k.directory("crio.network.network_dir", n.Dir)
	}
	for _, dir := range n.PluginDirs {
		if dir == "" {
			k.add(k.pluginKey(dir), "name the directory: CRI-O does not start", "has an empty name")
			continue
		}
		k.directory(k.pluginKey(dir), dir)
	}
}

// pluginKey is the key that names dir: plugin_dir adds to the list, as its last.
func (k *checker) pluginKey(dir string) string {
	const old = "crio.network.plugin_dir"
	if dirs := k.config.Network.PluginDirs; k.config.Origins.Last(old) != "" && slices.Index(dirs, dir) == len(dirs)-1 {
		return old
	}
	return "crio.network.plugin_dirs"
}

// directory checks a directory that CRI-O makes when it is not there.
func (k *checker) directory(key, dir string) {
	if !filepath.IsAbs(dir) {
		k.add(key, "write the whole path: husk and CRI-O need not run in the same directory", "%q is not absolute", dir)
		return
	}
	if info, err := os.Stat(dir); err == nil && !info.IsDir() {
		k.add(key, "name a directory: CRI-O does not start", "%s is none", dir)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		k.add(key, "name a directory: CRI-O does not start", "%s", reason(err))
	}
}

func (k *checker) tracing() {
	t := k.config.Tracing
	if !t.Enabled {
		return
	}
	if t.Endpoint == "" {
		k.add("crio.tracing.tracing_endpoint", "name the collector's host and port", "is empty")
	}
	if t.SamplingPerMillion < 0 || t.SamplingPerMillion > 1_000_000 {
		k.add("crio.tracing.tracing_sampling_rate_per_million", "use 0 to 1000000", "%d is no rate per million", t.SamplingPerMillion)
	}
}

// readable is [ReadFile] whose error names the file, as those of the system do.
func readable(path string) ([]byte, error) {
	data, err := ReadFile(path)
	var named *fs.PathError
	if err != nil && !errors.As(err, &named) {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return data, err
}

// reason is an error's text on one line.
func reason(err error) string { return strings.Join(strings.Fields(printable(err.Error())), " ") }
