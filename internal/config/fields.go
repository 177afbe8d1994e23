package config

import (
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
)

const handlersKey = "handlers"

// Field documents one key of husk.toml. `husk config` prints these texts as comments,
// and the table of docs/configuration.md is written from them.
type Field struct {
	// Key is the key, "handlers.NAME.pin_digest" for those of a handler.
	Key string
	// Doc says what it does.
	Doc string
	// Zero says what happens when it is not set.
	Zero string
	// Example is a value in TOML.
	Example string
	// Restart: a change takes effect only when husk is started again, not on SIGHUP.
	Restart bool
}

// Fields returns the one table of all keys, in the order in which they are shown.
func Fields() []Field {
	return []Field{
		{"listen", "path of the socket that Husk serves, where kubelet looks for CRI-O", DefaultListen, `"/var/run/crio/crio.sock"`, true},
		{"backend", "path of the socket of the CRI-O behind Husk", "what crio.conf listens on", `"/var/run/crio/crio-backend.sock"`, true},
		{"handover_socket", "socket on which a running husk hands its listening socket to the one that replaces it", DefaultHandoverSocket, `"/run/husk/handover.sock"`, true},
		{"crio_config", "CRI-O's configuration, read for storage, handlers, policy, credentials and limits", "/etc/crio/crio.conf", `"/etc/crio/crio.conf"`, false},
		{"crio_config_dir", "CRI-O's drop-ins", "/etc/crio/crio.conf.d", `"/etc/crio/crio.conf.d"`, false},
		{"registries_conf", "the registries.conf that CRI-O was started with", "$CONTAINER_REGISTRIES_CONF, else the system's", `"/etc/containers/registries.conf"`, false},
		{"registries_conf_dir", "the drop-ins of registries.conf", "$CONTAINER_REGISTRIES_CONF_DIR, else the system's", `"/etc/containers/registries.conf.d"`, false},
		{"default_handler", "runtime handler whose a pull is that names no pod and no handler", "CRI-O's default_runtime", `"husk"`, false},
		{"assume_handler", "answer presence checks that name no handler with this handler's view, on nodes where every pod uses it", "CRI-O's view", `"husk"`, false},
		{"max_pulls", "metadata pulls at once; more wait", "16", "16", false},
		{"pull_timeout", "time for one metadata pull", "2m", `"2m"`, false},
		{"record_ttl", "remove records that nothing used for so long and that no pod or container holds", "they stay", `"720h"`, false},
		{"metrics_listen", "serve Prometheus metrics on a socket, or on a port of the loopback; no other address is taken", "none are served", `"unix:///run/husk/metrics.sock"`, true},
		{"log_level", "debug, info, warn or error", "info", `"info"`, false},
		{"log_format", "text or json", "text", `"text"`, true},
		{"handlers.NAME.pin_digest", "tell the guest repo@digest; false tells it the tag, for policies that match tags", "true", "true", false},
		{"handlers.NAME.pull_in_sandbox", "fetch the metadata too from the pod's network namespace, with the pod's resolv.conf and in its cgroup", "from the host's", "true", false},
		{"handlers.NAME.max_image_size", "refuse images whose layers add up to more, as their manifest says it", "no limit", `"2GiB"`, false},
		{"handlers.NAME.max_layers", "refuse images with more layers", "only the built-in limit", "64", false},
	}
}

func hasField(key string) bool {
	return slices.ContainsFunc(Fields(), func(f Field) bool { return f.Key == key })
}

// handlerFields are the fields of a handler, their keys without the table's.
func handlerFields() []Field {
	var fields []Field
	for _, f := range Fields() {
		if key, ok := strings.CutPrefix(f.Key, handlersKey+".NAME."); ok {
			f.Key = key
			fields = append(fields, f)
		}
	}
	return fields
}

// topFields are the fields outside of tables.
func topFields() []Field {
	return slices.DeleteFunc(Fields(), func(f Field) bool { return strings.Contains(f.Key, ".") })
}

// valueOf returns the field of a struct that TOML calls key.
func valueOf(v any, key string) reflect.Value {
	rv := reflect.ValueOf(v)
	for i := range rv.NumField() {
		if rv.Type().Field(i).Tag.Get("toml") == key {
			return rv.Field(i)
		}
	}
	return reflect.Value{}
}

// Diff lists the keys, in the table's order, whose change from old to next takes
// effect only when husk is started again. The others may change while it runs.
func Diff(old, next Config) []string {
	var keys []string
	for _, f := range topFields() {
		if f.Restart && !reflect.DeepEqual(valueOf(old, f.Key).Interface(), valueOf(next, f.Key).Interface()) {
			keys = append(keys, f.Key)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(merged(old.Handlers, next.Handlers))) {
		for _, f := range handlerFields() {
			was, is := valueOf(old.Handlers[name], f.Key), valueOf(next.Handlers[name], f.Key)
			if f.Restart && !reflect.DeepEqual(was.Interface(), is.Interface()) {
				keys = append(keys, handlersKey+"."+name+"."+f.Key)
			}
		}
	}
	return keys
}

func merged(a, b map[string]Handler) map[string]Handler {
	all := maps.Clone(a)
	if all == nil {
		all = map[string]Handler{}
	}
	maps.Copy(all, b)
	return all
}

// WriteTable writes the table of docs/configuration.md.
func WriteTable(w io.Writer) error {
	if _, err := fmt.Fprintln(w, "| key | meaning | not set | on SIGHUP |\n|---|---|---|---|"); err != nil {
		return err
	}
	for _, f := range Fields() {
		key, reload := "`"+f.Key+"`", "yes"
		if rest, ok := strings.CutPrefix(f.Key, handlersKey+".NAME."); ok {
			key = "`[handlers.NAME] " + rest + "`"
		}
		if f.Restart {
			reload = "at restart"
		}
		if _, err := fmt.Fprintf(w, "| %s | %s | %s | %s |\n", key, f.Doc, f.Zero, reload); err != nil {
			return err
		}
	}
	return nil
}
