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
		{"handover_socket", "path of the socket on which a running husk hands its listening socket to the one that replaces it", DefaultHandoverSocket, `"/run/husk/handover.sock"`, true},
		{"crio_config", "path of CRI-O's configuration, which is read for storage, handlers, policy, credentials and limits", "/etc/crio/crio.conf", `"/etc/crio/crio.conf"`, false},
		{"crio_config_dir", "directory of CRI-O's drop-ins", "/etc/crio/crio.conf.d", `"/etc/crio/crio.conf.d"`, false},
		{"registries_conf", "path of the registries.conf that CRI-O was started with", "$CONTAINER_REGISTRIES_CONF, else the system's", `"/etc/containers/registries.conf"`, false},
		{"registries_conf_dir", "directory of the drop-ins of registries.conf", "$CONTAINER_REGISTRIES_CONF_DIR, else the system's", `"/etc/containers/registries.conf.d"`, false},
		{"default_handler", "the runtime handler for pulls that name neither a pod nor a handler, such as those of crictl pull", "CRI-O's default_runtime", `"husk"`, false},
		{"assume_handler", "show this runtime handler's images to presence checks that name no handler; for nodes where every pod uses it", "CRI-O's images are shown", `"husk"`, false},
		{"max_pulls", "how many metadata pulls run at once; others wait", "16", "16", false},
		{"pull_timeout", "how long one metadata pull may take", "2m", `"2m"`, false},
		{"layer_pull_timeout", "how long a pod may take to pull the layers of one image", "30m", `"30m"`, false},
		{"record_ttl", "remove records of images that were not pulled for this long and that no container uses", "records stay", `"720h"`, false},
		{"metrics_listen", "address of the Prometheus metrics: a socket or a port of the loopback interface, nothing else", "none are served", `"unix:///run/husk/metrics.sock"`, true},
		{"log_level", "what is logged: debug, info, warn or error", "info", `"info"`, false},
		{"log_format", "form of the log: text or json", "text", `"text"`, true},
		{"handlers.NAME.pin_digest", "tell the guest repo@digest; false tells it the tag, for policies that match tags", "true", "true", false},
		{"handlers.NAME.pull_in_sandbox", "fetch the metadata from the pod's network, with its resolv.conf and in its cgroup", "from the host's network", "true", false},
		{"handlers.NAME.presence", "what is present to a pod of Husk's shim when kubelet asks for it by handler: what its own store holds (pod), or every record of the node (node); see operate.md", "pod", `"node"`, false},
		{"handlers.NAME.named_users", "images whose user or group is a name: refuse the pull (refuse), unless the pod's securityContext sets runAsUser; refuse the container alone (refuse-at-create), for pods in which only the containers set runAsUser, which a pull is not told; or have the pod look the name up (sandbox): not for Kata's shims, and a runtime that looks nothing up runs it as nobody, 65534", "sandbox for Husk's shim, refuse for others", `"refuse"`, false},
		{"handlers.NAME.eager_pull", "pull layers with the image, for the pod that pulls and with its credentials; false leaves them to the creation of the container, with the credentials of the node, in the time that pull_timeout of shim.toml and kubelet's runtimeRequestTimeout give", "true where the handler's shim can, which is Husk's", "false", false},
		{"handlers.NAME.max_image_size", "refuse images whose layers add up to more than this, by what the manifest says", "no limit", `"2GiB"`, false},
		{"handlers.NAME.max_layers", "refuse images with more layers than this", "only the built-in limit", "64", false},
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
