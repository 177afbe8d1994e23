// Package huskconf writes the configuration of a node for tests: husk.toml, crio.conf
// and the files that they name, in a directory of their own.
package huskconf

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// Place is a node's configuration.
type Place struct {
	// Dir holds every file; Dir/root is CRI-O's graph root, Dir/front.sock husk's socket.
	Dir string
	// File is husk.toml.
	File string
}

// New writes both configurations; the machine's own are not read. CRI-O has the
// guest-pull handler husk and a policy that accepts everything.
func New(t testing.TB) Place {
	t.Helper()
	p := Place{Dir: t.TempDir()}
	p.Write(t, "policy.json", `{"default":[{"type":"insecureAcceptAnything"}]}`)
	p.Write(t, "auth.json", `{}`)
	p.Write(t, "registries.conf", "unqualified-search-registries = []\n")
	p.Write(t, "crio.conf", fmt.Sprintf(`
[crio]
root = "%[1]s/root"
runroot = "%[1]s/run"
storage_driver = "vfs"
[crio.api]
listen = "%[1]s/backend.sock"
[crio.runtime.runtimes.husk]
runtime_path = "/usr/local/bin/containerd-shim-husk-v2"
runtime_type = "vm"
runtime_pull_image = true
[crio.image]
global_auth_file = "%[1]s/auth.json"
signature_policy = "%[1]s/policy.json"
signature_policy_dir = "%[1]s/policies"
`, p.Dir))
	p.File = p.Write(t, "husk.toml", fmt.Sprintf(`
crio_config = "%[1]s/crio.conf"
crio_config_dir = "%[1]s/none"
registries_conf = "%[1]s/registries.conf"
registries_conf_dir = "%[1]s/none"
listen = "%[1]s/front.sock"
`, p.Dir))
	return p
}

// Write writes a file of the place and returns its path.
func (p Place) Write(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(p.Dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
