package imagers

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containers/image/v5/pkg/docker/config"
	"github.com/containers/image/v5/pkg/sysregistriesv2"
	"github.com/containers/image/v5/signature"
	"github.com/containers/image/v5/types"
	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/pkg/errdefs"
)

const secret = "c2VjcmV0OmJ5dGVz"

// broker is a key broker.
type broker map[string]string

func (b broker) Resource(_ context.Context, uri string) ([]byte, error) {
	if text, ok := b[uri]; ok {
		return []byte(text), nil
	}
	return nil, errors.New("no such resource")
}

func file(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestRead(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	c, err := Read(file(t, `
[kbc]
name = "cc_kbc"
[image]
work_dir = "/w"
image_security_policy_uri = "kbs:///a/b/c"
image_security_policy = "{}"
sigstore_config_uri = "file:///s"
sigstore_config = "docker: {}"
authenticated_registry_credentials_uri = "/auth.json"
registry_configuration_uri = "kbs+x:///a/b/c"
max_concurrent_layer_downloads_per_image = 5
extra_root_certificates = ["one", "two"]
anonymous_fallback_on_unauthorized = true
image_securty_policy = "a typo"
[image.image_pull_proxy]
https_proxy = "http://p:1"
http_proxy = "http://p:2"
no_proxy = "10.0.0.1"
[image.registry_config]
unqualified-search-registries = ["r"]
[[image.registry_config.registry]]
location = "l"
`), "/dev/null")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(c.Warnings).To(ConsistOf(ContainSubstring("image_securty_policy"), ContainSubstring("anonymous_fallback")))
	c.Warnings = nil
	g.Expect(c.Registries).To(HaveKey("registry"))
	c.Registries = nil
	g.Expect(c).To(Equal(Config{
		WorkDir: "/w", PolicyURI: "kbs:///a/b/c", Policy: "{}", SigstoreURI: "file:///s", Sigstore: "docker: {}",
		AuthURI: "/auth.json", RegistriesURI: "kbs+x:///a/b/c", Concurrency: 5, ExtraRoots: []string{"one", "two"},
		Proxy: Proxy{HTTPS: "http://p:1", HTTP: "http://p:2", No: "10.0.0.1"}, AnonymousFallback: true,
	}))
}

func TestReadDefaultsAndKernelParameters(t *testing.T) {
	t.Parallel()
	const params = "quiet agent.https_proxy=http://p:1 agent.no_proxy=n agent.image_registry_auth=kbs:///x agent.image_policy_file=kbs:///p"
	for name, tc := range map[string]struct {
		file, cmdline string
		want          Config
	}{
		"empty section":  {"[image]", params, Config{}},
		"no section":     {"[kbc]", params, Config{Proxy: Proxy{HTTPS: "http://p:1", No: "n"}, AuthURI: "kbs:///x"}},
		"no file":        {"", params, Config{Proxy: Proxy{HTTPS: "http://p:1", No: "n"}, AuthURI: "kbs:///x"}},
		"policy":         {"", params + " agent.enable_signature_verification=true", Config{Proxy: Proxy{HTTPS: "http://p:1", No: "n"}, AuthURI: "kbs:///x", PolicyURI: "kbs:///p"}},
		"policy, not 1":  {"", "agent.image_policy_file=kbs:///p agent.enable_signature_verification=1", Config{}},
		"nothing at all": {"", "quiet", Config{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			path := "/nonexistent/cdh.toml"
			if tc.file != "" {
				path = file(t, tc.file)
			}
			got, err := Read(path, file(t, tc.cmdline+"\n"))
			g.Expect(err).NotTo(HaveOccurred())
			got.Warnings = nil
			tc.want.WorkDir, tc.want.Concurrency = DefaultWorkDir, 3
			g.Expect(got).To(Equal(tc.want))
		})
	}
}

func TestReadRefuses(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"not TOML":       "[image\n" + secret,
		"wrong type":     "[image]\nwork_dir = 1",
		"relative":       "[image]\nwork_dir = \"w\"",
		"no layers":      "[image]\nmax_concurrent_layer_downloads_per_image = 0",
		"too many":       "[image]\nmax_concurrent_layer_downloads_per_image = 65",
		"not a section":  "image = 3",
		"negative":       "[image]\nmax_concurrent_layer_downloads_per_image = -1",
		"secret in text": "[image]\nimage_security_policy = '''" + secret,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Read(file(t, text), "/dev/null")
			NewWithT(t).Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument), "%v", err)
			NewWithT(t).Expect(err.Error()).NotTo(ContainSubstring(secret))
		})
	}
	_, err := Read(file(t, strings.Repeat("#", maxFile+1)), "/dev/null")
	NewWithT(t).Expect(errdefs.KindOf(err)).To(Equal(errdefs.TooLarge))
}

// pair makes a public key in PEM and a certificate.
func pair(t *testing.T) (public, certificate string) {
	t.Helper()
	g := NewWithT(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	g.Expect(err).NotTo(HaveOccurred())
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	g.Expect(err).NotTo(HaveOccurred())
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	g.Expect(err).NotTo(HaveOccurred())
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}))
}

func quote(s string) string { return strings.ReplaceAll(s, "\n", `\n`) }

// TestWriteMeansTheSame: what containers/image reads of the files is what was meant.
func TestWriteMeansTheSame(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	public, cert := pair(t)
	c := Config{
		Policy: `{"default":[{"type":"reject"}],"transports":{"docker":{"reg.io/a":[{"type":"sigstoreSigned","keyData":"` + quote(public) + `"}],
			"reg.io/b":[{"type":"sigstoreSigned","keyPath":"kbs:///default/key/1"}],"reg.io/c":[{"type":"sigstoreSigned","keyPath":"file:///k"}]}}}`,
		AuthURI: "kbs:///default/auth/1", Sigstore: "default-docker:\n  lookaside: https://sig.io\n", ExtraRoots: []string{cert},
		Registries: map[string]any{"registry": []map[string]any{{"prefix": "reg.io", "location": "real.io", "mirror": []map[string]any{{"location": "m.io"}}}}},
		Proxy:      Proxy{HTTPS: "http://p:1", No: "n"},
	}
	dir := t.TempDir()
	f, err := c.Write(t.Context(), dir, broker{
		"kbs:///default/key/1":  public,
		"kbs:///default/auth/1": `{"auths":{"reg.io/a":{"auth":"` + secret + `"}},"credHelpers":{"reg.io":"evil"},"credsStore":"evil"}`,
	})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(f.Environment).To(Equal([]string{"HTTPS_PROXY=http://p:1", "NO_PROXY=n", "SSL_CERT_DIR=" + systemCertDirs + ":" + dir + "/roots"}))
	g.Expect(read(t, dir+"/roots/0.pem")).To(Equal(cert))
	g.Expect(read(t, f.RegistriesD+"/image-rs.yaml")).To(Equal(c.Sigstore))

	policy, err := signature.NewPolicyFromFile(f.Policy)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(policy.Transports["docker"]).To(HaveLen(3))
	g.Expect(read(t, f.Policy)).To(And(ContainSubstring(base64.StdEncoding.EncodeToString([]byte(public))), ContainSubstring(`"/k"`), ContainSubstring(dir+"/key-1")))
	g.Expect(read(t, dir+"/key-1")).To(Equal(public))

	sys := &types.SystemContext{SystemRegistriesConfPath: f.Registries, SystemRegistriesConfDirPath: f.Empty, AuthFilePath: f.Auth}
	search, err := sysregistriesv2.UnqualifiedSearchRegistries(sys)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(search).To(Equal([]string{"docker.io"}), "image-rs's default")
	found, err := sysregistriesv2.FindRegistry(sys, "reg.io/a")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(found.Location).To(Equal("real.io"))
	g.Expect(found.Mirrors).To(HaveLen(1))
	auth, err := config.GetCredentials(sys, "reg.io/a")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(auth.Username).To(Equal("secret"))
	g.Expect(read(t, f.Auth)).NotTo(ContainSubstring("evil"), "the file names no programs")
	for _, path := range []string{f.Auth, f.Policy, f.Registries} {
		info, err := os.Stat(path)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(info.Mode().Perm()).To(Equal(os.FileMode(0o600)))
	}
}

func TestWriteNothing(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	f, err := Config{Proxy: Proxy{No: "n"}}.Write(t.Context(), t.TempDir(), nil)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(f.Environment).To(BeEmpty(), "no_proxy alone does nothing, as in image-rs")
	policy, err := signature.NewPolicyFromFile(f.Policy)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(policy.Default).To(HaveLen(1))
	all, err := config.GetAllCredentials(&types.SystemContext{AuthFilePath: f.Auth})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(all).To(BeEmpty())
}

func TestPrecedence(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	f, err := Config{
		PolicyURI: file(t, `{"default":[{"type":"reject"}]}`), Policy: acceptAll,
		SigstoreURI: "file://" + file(t, "docker: {}"), Sigstore: "other",
		RegistriesURI: "kbs:///not/asked/for", Registries: map[string]any{"unqualified-search-registries": []string{"in.line"}},
	}.Write(t.Context(), t.TempDir(), broker{})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(read(t, f.Policy)).To(ContainSubstring("reject"))
	g.Expect(read(t, f.RegistriesD+"/image-rs.yaml")).To(Equal("docker: {}"))
	g.Expect(read(t, f.Registries)).To(And(ContainSubstring("in.line"), Not(ContainSubstring("docker.io"))))
}

// TestPlugins: which plugin of the key broker a resource is of is its business.
func TestPlugins(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	f, err := Config{PolicyURI: "kbs+vault:///a/b/c"}.Write(t.Context(), t.TempDir(), broker{"kbs+vault:///a/b/c": `{"default":[{"type":"reject"}]}`})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(read(t, f.Policy)).To(ContainSubstring("reject"))
	_, err = Config{PolicyURI: "kbs:///a/b/c"}.Write(t.Context(), t.TempDir(), broker{})
	g.Expect(err).To(MatchError(And(ContainSubstring("kbs:///a/b/c"), ContainSubstring("no such resource"))))
}

func TestWriteRefuses(t *testing.T) {
	t.Parallel()
	mirror := map[string]any{"registry": []map[string]any{{"prefix": "reg.io", "location": "reg.io", "mirror": []map[string]any{{"location": "m.io/x"}}}}}
	for name, tc := range map[string]struct {
		config Config
		kind   errdefs.Kind
		text   string
	}{
		"no requirement":         {Config{Policy: `{"default":[]}`}, errdefs.InvalidArgument, "default has no requirement"},
		"no requirement, scope":  {Config{Policy: `{"default":[{"type":"reject"}],"transports":{"docker":{"a":[]}}}`}, errdefs.InvalidArgument, `scope "a"`},
		"not JSON":               {Config{Policy: secret}, errdefs.InvalidArgument, "not a valid policy"},
		"unknown field":          {Config{Policy: `{"default":[{"type":"reject"}],"trnsports":{}}`}, errdefs.InvalidArgument, "trnsports"},
		"scope of a mirror":      {Config{Policy: `{"default":[{"type":"insecureAcceptAnything"}],"transports":{"docker":{"m.io":[{"type":"reject"}]}}}`, Registries: mirror}, errdefs.InvalidArgument, "m.io"},
		"auth entry without":     {Config{AuthURI: file(t, `{"auths":{"reg.io":{}}}`)}, errdefs.InvalidArgument, "reg.io"},
		"auth not JSON":          {Config{AuthURI: file(t, `{"auths":"`+secret)}, errdefs.InvalidArgument, "not a valid auth file"},
		"kbs without a hub":      {Config{AuthURI: "kbs:///a/b/c"}, errdefs.Unsupported, "kbs:///a/b/c"},
		"no such file":           {Config{PolicyURI: "/nonexistent"}, errdefs.InvalidArgument, "/nonexistent"},
		"relative file":          {Config{PolicyURI: "policy.json"}, errdefs.InvalidArgument, "not an absolute path"},
		"unknown scheme":         {Config{PolicyURI: "https://x/y"}, errdefs.InvalidArgument, "scheme"},
		"registries not TOML":    {Config{RegistriesURI: file(t, "x = "+secret)}, errdefs.InvalidArgument, "not valid TOML"},
		"certificate not PEM":    {Config{ExtraRoots: []string{"x"}}, errdefs.InvalidArgument, "number 0"},
		"certificate of nothing": {Config{ExtraRoots: []string{"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}}, errdefs.InvalidArgument, "number 0"},
		"too many certificates":  {Config{ExtraRoots: make([]string, maxExtraRoots+1)}, errdefs.TooLarge, "1025"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			_, err := tc.config.Write(t.Context(), t.TempDir(), nil)
			g.Expect(errdefs.KindOf(err)).To(Equal(tc.kind), "%v", err)
			g.Expect(err).To(MatchError(ContainSubstring(tc.text)))
			g.Expect(err.Error()).NotTo(ContainSubstring(secret))
		})
	}
	t.Run("the scope of a mirror beside the image's own", func(t *testing.T) {
		t.Parallel()
		_, err := Config{Policy: `{"default":[{"type":"reject"}],"transports":{"docker":{"m.io":[{"type":"reject"}],"reg.io":[{"type":"reject"}]}}}`, Registries: mirror}.Write(t.Context(), t.TempDir(), nil)
		NewWithT(t).Expect(err).NotTo(HaveOccurred())
	})
}

func FuzzPolicy(f *testing.F) {
	f.Add(acceptAll)
	f.Add(`{"default":[{"type":"sigstoreSigned","keyData":"-----BEGIN x"}],"transports":{"docker":{"":[{}]}}}`)
	f.Fuzz(func(t *testing.T, text string) {
		dir := t.TempDir()
		if _, err := (Config{Policy: text}).Write(t.Context(), dir, nil); err != nil || text == "" {
			return
		}
		// What is accepted has a requirement wherever containers/image wants one.
		var empty signature.PolicyRequirements
		if p, err := signature.NewPolicyFromFile(filepath.Join(dir, "policy.json")); err == nil && len(p.Default) == len(empty) {
			t.Errorf("accepted without a default: %s", text)
		}
	})
}

// FuzzRead reads anything as cdh.toml and as kernel parameters.
func FuzzRead(f *testing.F) {
	f.Add("[image]\nwork_dir = \"/w\"\nmax_concurrent_layer_downloads_per_image = 5\n[[image.registry_config.registry]]\nlocation = \"l\"\n", "")
	f.Add("[kbc]", "agent.https_proxy=http://p:1 agent.image_policy_file=kbs:///p agent.enable_signature_verification=true")
	f.Add("image = 3", "=")
	dir := f.TempDir() // each worker's own
	f.Fuzz(func(t *testing.T, text, cmdline string) {
		conf, params := filepath.Join(dir, "cdh.toml"), filepath.Join(dir, "cmdline")
		for path, content := range map[string]string{conf: text, params: cmdline} {
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c, err := Read(conf, params)
		if err != nil {
			return
		}
		if !strings.HasPrefix(c.WorkDir, "/") || c.Concurrency < 1 || c.Concurrency > maxConcurrency {
			t.Errorf("accepted: %+v", c)
		}
		for _, variable := range c.Proxy.environment() {
			if name, _, ok := strings.Cut(variable, "="); !ok || !strings.HasSuffix(name, "_PROXY") {
				t.Errorf("sets %q", variable)
			}
		}
	})
}

// FuzzRegistries reads anything as registries.conf: what is written is what
// containers/image reads, or refuses too.
func FuzzRegistries(f *testing.F) {
	f.Add("[[registry]]\nprefix = \"a.io\"\nlocation = \"b.io\"\n[[registry.mirror]]\nlocation = \"m.io\"\n")
	f.Add("unqualified-search-registries = [\"x\"]")
	f.Add("registry = 1")
	f.Fuzz(func(t *testing.T, text string) {
		dir := t.TempDir()
		files, err := Config{RegistriesURI: file(t, text)}.Write(t.Context(), dir, nil)
		if err != nil {
			return
		}
		sys := &types.SystemContext{SystemRegistriesConfPath: files.Registries, SystemRegistriesConfDirPath: files.Empty}
		if search, err := sysregistriesv2.UnqualifiedSearchRegistries(sys); err == nil && len(search) == 0 && !strings.Contains(text, "unqualified-search-registries") {
			t.Errorf("no search list: %s", text)
		}
	})
}
