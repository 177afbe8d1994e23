package shim

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"testing"
	"time"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/layerpull/policy"
)

// runtime is a program that every machine has, in the place of an OCI runtime.
const someRuntime = "/bin/sh"

func writeConfig(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "shim.toml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestConfigDefaults(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	c, err := LoadConfig(writeConfig(t, `runtime = "sh"`))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(filepath.IsAbs(c.Runtime)).To(BeTrue(), c.Runtime)
	g.Expect(c.RuntimeRoot).To(Equal("/run/husk/runc"))
	g.Expect([]string{c.Store, c.StoreDir, c.StoreSize}).To(Equal([]string{"memory", "/var/lib/husk/pods", "50%"}))
	g.Expect(c.ExitsDir).To(Equal("/var/run/crio/exits"))
	g.Expect(time.Duration(c.PullTimeout)).To(Equal(4 * time.Minute))
	g.Expect([]string{c.KeysDir, c.AuthFile, c.Policy, c.RegistriesConf, c.CertsDir}).To(HaveEach(""))
}

func TestConfigFields(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	c, err := LoadConfig(writeConfig(t, `
runtime = "/bin/sh"
runtime_root = "/a"
store = "disk"
store_dir = "/k"
store_size = "512m"
keys_dir = "/b"
key_providers = "/j"
auth_file = "/c"
policy = "/d"
registries_conf = "/e"
registries_conf_dir = "/f"
registries_d = "/g"
certs_dir = "/h"
pull_timeout = "90s"
exits_dir = "/i"
[image_rules]
encrypted_signed = "mandatory"
`))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(c).To(Equal(Config{
		Runtime: "/bin/sh", RuntimeRoot: "/a", Store: "disk", StoreDir: "/k", StoreSize: "512m", KeysDir: "/b", KeyProviders: "/j", AuthFile: "/c", Policy: "/d",
		RegistriesConf: "/e", RegistriesConfDir: "/f", RegistriesD: "/g", CertsDir: "/h",
		PullTimeout: duration(90 * time.Second), ExitsDir: "/i",
		ImageRules: policy.Config{EncryptedSigned: policy.Mandatory},
	}))
}

func TestConfigRefuses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ content, text string }{
		"unknown key":   {`runtime_rot = "/x"`, "runtime_rot"},
		"unknown table": {"[shim]\nruntime = 'x'", "shim.runtime"},
		"not TOML":      {`runtime = `, ""},
		"wrong type":    {`store_size = 5`, "store_size"},
		"size":          {`store_size = "5m,uid=0"`, "store_size"},
		"no size":       {`store_size = "0"`, "store_size"},
		"store":         {`store = "tape"`, `"tape" is neither`},
		"store's place": {`store_dir = "stores"`, "store_dir"},
		"relative":      {`keys_dir = "keys"`, "keys_dir"},
		"no runtime":    {`runtime = "no-such-runtime-here"`, "runtime"},
		"timeout":       {`pull_timeout = "10"`, "missing unit"},
		"rule":          {"[image_rules]\nencrypted_signed = 'maybe'", "maybe"},
		"no rule left":  {"[image_rules]\nencrypted_signed = 'refused'\nencrypted_unsigned = 'refused'\nunencrypted_signed = 'refused'\nunencrypted_unsigned = 'refused'", "image rules"},
		"negative":      {`pull_timeout = "-1s"`, "negative"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			_, err := LoadConfig(writeConfig(t, "\n"+tc.content))
			g.Expect(err).To(MatchError(ContainSubstring(tc.text)))
			g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument))
		})
	}
}

func TestConfigFileMustExist(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	_, err := LoadConfig("/no/such/shim.toml")
	g.Expect(err).To(MatchError(ContainSubstring("/no/such/shim.toml")))
}

// The file that operators start from shows every key, with the value it has anyway.
func TestShownConfigIsTheDefault(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	shown, err := os.ReadFile("../../contrib/crio/shim.toml")
	g.Expect(err).NotTo(HaveOccurred())
	lines := regexp.MustCompile(`(?m)^# (\[?[a-z_]+\]?(?: = "[^"]*")?)(?: +#.*)?$`).FindAllSubmatch(shown, -1)
	var content []byte
	for _, line := range lines {
		content = fmt.Appendf(content, "%s\n", line[1])
	}
	c, err := LoadConfig(writeConfig(t, string(content)))
	g.Expect(err).NotTo(HaveOccurred(), "%s", content)
	c.ImageRules = policy.Config{} // each is said to be allowed, which is their zero
	want, err := LoadConfig(writeConfig(t, ""))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(c).To(Equal(want))
	g.Expect(lines).To(HaveLen(reflect.TypeFor[Config]().NumField()+reflect.TypeFor[policy.Config]().NumField()), "%s", content)
}
