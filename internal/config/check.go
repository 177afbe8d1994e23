package config

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/husk-cri/husk/internal/crioconf"
	"github.com/husk-cri/husk/internal/metrics"
)

// maxSocketPath is sun_path without its terminating zero: bind refuses a longer one.
const maxSocketPath = 107

// unixScheme starts addresses that are sockets.
const unixScheme = "unix://"

// Where returns the file that set key, or where to write it if none did.
func (l Loaded) Where(key string) string {
	if file := l.Origins[key]; file != "" {
		return file
	}
	if len(l.Files) > 0 {
		return l.Files[0]
	}
	return DefaultFile
}

// refuse adds a problem of a value that cannot be meant.
func (l *Loaded) refuse(key, remedy, format string, args ...any) {
	l.problem(Problem{File: l.Where(key), Key: key, What: fmt.Sprintf(format, args...), Remedy: remedy, Fatal: true})
}

// validate finds values that are wrong on any machine.
func (l *Loaded) validate(path string) {
	if len(l.Files) == 0 && path != DefaultFile { // not read; said already
		return
	}
	c := l.Config
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, c.LogLevel) {
		l.refuse("log_level", "use debug, info, warn or error", "%q is no level", c.LogLevel)
	}
	if !slices.Contains([]string{"text", "json"}, c.LogFormat) {
		l.refuse("log_format", "use text or json", "%q is no format", c.LogFormat)
	}
	if c.MaxPulls < 0 {
		l.refuse("max_pulls", "use 1 or more", "%d is negative", c.MaxPulls)
	}
	for _, s := range []struct{ key, path string }{
		{"listen", c.Listen}, {"backend", c.Backend}, {"handover_socket", c.HandoverSocket},
		{"crio_config", c.CrioConfig}, {"crio_config_dir", c.CrioConfigDir},
		{"registries_conf", c.RegistriesConf}, {"registries_conf_dir", c.RegistriesConfDir},
	} {
		if s.path != "" && !filepath.IsAbs(s.path) {
			l.refuse(s.key, "write the whole path", "%q is not absolute", s.path)
		}
	}
	if addr := c.MetricsListen; addr != "" {
		if err := metrics.CheckAddress(addr); err != nil {
			l.refuse("metrics_listen", "use unix:///PATH or 127.0.0.1:PORT", "%v", err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Handlers)) {
		l.validateHandler(handlersKey+"."+name, c.Handlers[name])
	}
}

// validateHandler finds what is wrong in one handler's table, whose name is key.
func (l *Loaded) validateHandler(key string, h Handler) {
	if h.MaxLayers < 0 {
		l.refuse(key+".max_layers", "use 1 or more", "%d is negative", h.MaxLayers)
	}
	if !slices.Contains([]string{"", PresencePod, PresenceNode}, h.Presence) {
		l.refuse(key+".presence", "use pod or node", "%q is neither", h.Presence)
	}
	if !slices.Contains([]string{"", NamedUsersRefuse, NamedUsersRefuseAtCreate, NamedUsersSandbox}, h.NamedUsers) {
		l.refuse(key+".named_users", "use refuse, refuse-at-create or sandbox", "%q is none of them", h.NamedUsers)
	}
}

// MinRecordTTL is the least record_ttl: that of the store (cstore.MinTTL).
const MinRecordTTL = 10 * time.Minute

// Check names what in a configuration that was read without problems will not work on
// this node, with this CRI-O. husk serve refuses those that are Fatal.
func Check(l Loaded, crio crioconf.Config) []Problem {
	k := &checker{Loaded: l, crio: crio}
	k.sockets()
	k.handlers()
	if ttl := l.Config.RecordTTL.Duration; ttl > 0 && ttl < MinRecordTTL {
		k.add(Problem{
			Key: "record_ttl", What: fmt.Sprintf("%s is less than %s, within which a pod may still start from the record it pulled", ttl, MinRecordTTL),
			Remedy: "give it more time", Fatal: true,
		})
	}
	for _, s := range []struct{ key, path string }{
		{"registries_conf", l.Config.RegistriesConf}, {"registries_conf_dir", l.Config.RegistriesConfDir},
	} {
		if _, err := os.Stat(s.path); s.path != "" && err != nil {
			k.add(Problem{Key: s.key, What: err.Error(), Remedy: "name what CRI-O was started with"})
		}
	}
	return k.found
}

type checker struct {
	Loaded
	crio  crioconf.Config
	found []Problem
}

func (k *checker) add(p Problem) {
	if p.File == "" {
		p.File = k.Where(p.Key)
	}
	k.found = append(k.found, p)
}

// sockets finds sockets that are the same or cannot be.
func (k *checker) sockets() {
	c := k.Config
	backend, key := c.Backend, "backend"
	if backend == "" {
		backend, key = k.crio.Listen, "crio.api.listen"
	}
	if SamePath(c.Listen, backend) {
		p := Problem{
			Key: key, What: "husk and CRI-O both listen on " + c.Listen,
			Remedy: "set listen in [crio.api] of crio.conf to another socket", Fatal: true,
		}
		if c.Backend == "" {
			p.File = k.crio.Where(key)
		} else if p.Remedy = "name CRI-O's socket"; !SamePath(c.Listen, k.crio.Listen) {
			p.Remedy = "remove backend: CRI-O listens on " + k.crio.Listen
		}
		k.add(p)
	}
	metrics, isSocket := strings.CutPrefix(c.MetricsListen, unixScheme)
	all := []struct{ key, path string }{{"listen", c.Listen}, {"handover_socket", c.HandoverSocket}}
	if isSocket {
		all = append(all, struct{ key, path string }{"metrics_listen", metrics})
	}
	for i, s := range all {
		if len(s.path) > maxSocketPath {
			k.add(Problem{Key: s.key, What: fmt.Sprintf("the path of a socket has at most %d bytes, this one %d", maxSocketPath, len(s.path)), Remedy: "use a shorter one", Fatal: true})
		}
		for _, other := range all[:i] {
			if SamePath(s.path, other.path) {
				k.add(Problem{Key: s.key, What: "is the socket of " + other.key + " too", Remedy: "use another path", Fatal: true})
			}
		}
	}
}

// handlers finds names that CRI-O does not have, and settings without effect.
func (k *checker) handlers() {
	c := k.Config
	for _, s := range []struct{ key, name string }{{"default_handler", c.DefaultHandler}, {"assume_handler", c.AssumeHandler}} {
		if _, ok := k.crio.Handlers[s.name]; s.name != "" && !ok {
			k.add(Problem{
				Key: s.key, What: fmt.Sprintf("%q is no runtime handler of crio.conf", s.name),
				Remedy: "use one of " + strings.Join(slices.Sorted(maps.Keys(k.crio.Handlers)), ", "), Fatal: true,
			})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Handlers)) {
		handler, ok := k.crio.Handlers[name]
		switch key := handlersKey + "." + name; {
		case !ok:
			k.add(Problem{
				Key: key, What: "is no runtime handler of crio.conf",
				Remedy: "use one of " + strings.Join(k.crio.GuestPullHandlers(), ", ") + ", or remove the table",
			})
		case !handler.GuestPull():
			k.add(Problem{
				Key: key, What: "has no effect: crio.conf does not let this handler pull in the guest",
				Remedy: `set runtime_pull_image = true and runtime_type = "vm" in crio.conf, or remove the table`,
			})
		default:
			k.guestPull(key, c.Handlers[name], handler)
		}
	}
}

// guestPull finds settings of a guest-pull handler that its runtime cannot follow.
func (k *checker) guestPull(key string, own Handler, crio crioconf.Handler) {
	if own.EagerPull != nil && *own.EagerPull && !crio.PullsLayers() {
		k.add(Problem{
			Key: key + ".eager_pull", What: "has no effect: " + crio.Path + " pulls layers when a container is created, and not before",
			Remedy: "remove it",
		})
	}
	if own.NamedUsers != NamedUsersSandbox || crio.ResolvesNames() {
		return
	}
	p := Problem{
		Key:    key + ".named_users",
		What:   "husk does not know " + crio.Path + " to look names up: one that does not runs such a container as nobody (65534), a user nobody asked for",
		Remedy: `use "refuse" or "refuse-at-create", unless it resolves the annotation husk.dev/user in the image's files`,
	}
	if isKata(crio) {
		p.What, p.Fatal = "Kata takes ids as they are: a container whose image names its user would run as nobody (65534)", true
		p.Remedy = `use "refuse" or "refuse-at-create"`
	}
	k.add(p)
}

// isKata reports whether the handler's shim is one of Kata's, whose agent looks no name up.
func isKata(h crioconf.Handler) bool {
	return strings.HasPrefix(filepath.Base(h.Path), "containerd-shim-kata-")
}

// SamePath reports whether two paths lead to one file, which need not exist yet:
// /var/run/crio and /run/crio are one directory on most nodes.
func SamePath(a, b string) bool { return realPath(a) == realPath(b) }

// realPath returns path without symlinks in the part of its directory that exists.
func realPath(path string) string {
	dir, rest := filepath.Split(filepath.Clean(path))
	for {
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			return filepath.Join(real, rest)
		}
		parent := filepath.Dir(filepath.Clean(dir))
		if parent == filepath.Clean(dir) {
			return filepath.Clean(path)
		}
		rest = filepath.Join(filepath.Base(dir), rest)
		dir = parent
	}
}
