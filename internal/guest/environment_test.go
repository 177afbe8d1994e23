package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	"github.com/husk-cri/husk/internal/testkit/images"
)

// Proxies and certificates are the process's, and read once: each case has a process.

// childEnv holds what a child of this test is to do.
const childEnv = "HUSK_TEST_GUEST_CHILD"

// job is the work of a child: one pull.
type job struct {
	Image, Config, Cmdline, RunDir, WorkDir, BundleParent string
}

// child does the work and reports with the exit code and standard error.
func child(text string) int {
	var j job
	err := json.Unmarshal([]byte(text), &j)
	if err == nil {
		g := New(Options{
			Config: j.Config, Cmdline: j.Cmdline, RunDir: j.RunDir, WorkDir: j.WorkDir,
			BundleParent: j.BundleParent, AASocket: "/nonexistent/aa", Log: slog.New(slog.DiscardHandler),
		})
		_, err = g.Pull(context.Background(), j.Image, "", nil)
		err = errors.Join(err, g.Forget())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// run does it in a process with these variables besides the test's.
func (j job) run(t *testing.T, env ...string) error {
	t.Helper()
	text, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append([]string{childEnv + "=" + string(text), "PATH=" + os.Getenv("PATH"), "TMPDIR=" + t.TempDir()}, env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// proxy is an HTTP proxy that counts what it is asked for.
type proxy struct {
	*httptest.Server
	tunnels, requests atomic.Int64
}

func newProxy(t *testing.T) *proxy {
	t.Helper()
	p := &proxy{}
	plain := &httputil.ReverseProxy{Rewrite: func(*httputil.ProxyRequest) {}} // to where the request says
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect {
			p.requests.Add(1)
			plain.ServeHTTP(w, r)
			return
		}
		p.tunnels.Add(1)
		tunnel(w, r)
	}))
	t.Cleanup(p.Close)
	return p
}

func tunnel(w http.ResponseWriter, r *http.Request) {
	there, err := new(net.Dialer).DialContext(r.Context(), "tcp", r.Host)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	here, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		_ = there.Close()
		return
	}
	_, _ = io.WriteString(here, "HTTP/1.1 200 OK\r\n\r\n")
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{here, there}, {there, here}} {
		both.Go(func() {
			_, _ = io.Copy(way[0], way[1])
			_ = way[0].Close() // ends the other way
		})
	}
	both.Wait()
}

// outside is an address that is no loopback, for which Go would use no proxy.
const outside = "192.0.2.1"

func needOutside(t *testing.T) {
	t.Helper()
	needRoot(t)
	out, err := exec.CommandContext(t.Context(), "ip", "addr", "replace", outside+"/32", "dev", "lo").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// TestProxiesAndCertificates: image_pull_proxy and extra_root_certificates, and the kernel
// parameters of a guest without a file, take effect on the wire.
func TestProxiesAndCertificates(t *testing.T) {
	t.Parallel()
	needOutside(t)
	ca := fakeregistry.NewCA(t)
	content := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	secure := fakeregistry.New(t, fakeregistry.Options{Listen: outside + ":0", CA: ca, Username: "u", Password: "p", Handler: content})
	plain := fakeregistry.New(t, fakeregistry.Options{Listen: outside + ":0", Handler: content})
	dir, layout := t.TempDir(), t.TempDir()
	summary, err := images.Build(t.Context(), layout, "t", images.Spec{Layers: []images.Layer{{Random: 100}}})
	if err == nil {
		err = images.Push(t.Context(), layout, "t", plain.Host()+"/app:t")
	}
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, content string) string {
		path := dir + "/" + name
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	auth := write("auth.json", `{"auths":{"`+secure.Host()+`":{"auth":"dTpw"}}}`)
	roots := "extra_root_certificates = [\"\"\"" + string(ca.PEM) + "\"\"\"]\n"
	trusted := "SSL_CERT_FILE=" + write("ca.pem", string(ca.PEM))
	reject := write("policy.json", `{"default":[{"type":"reject"}]}`)
	const usable = "authenticated_registry_credentials_uri = "
	insecure := "[[image.registry_config.registry]]\nlocation = \"" + plain.Host() + "\"\ninsecure = true\n"
	for name, tc := range map[string]struct {
		registry *fakeregistry.Registry
		// image is what is in [image], @ standing for the proxy; "" is no file.
		image, cmdline    string
		env               []string
		fails             string
		tunnels, requests bool // what goes through the proxy
	}{
		"no certificate": {registry: secure, image: usable + `"` + auth + `"`, fails: "certificate signed by unknown authority"},
		"certificate":    {registry: secure, image: usable + `"` + auth + "\"\n" + roots},
		"beside the system's": {
			registry: secure, image: usable + `"` + auth + "\"\n" + strings.Replace(roots, string(ca.PEM), string(fakeregistry.NewCA(t).PEM), 1),
			env: []string{trusted},
		},
		"no credentials": {registry: secure, image: roots, fails: "unauthorized"},
		"https_proxy": {
			registry: secure, image: usable + `"` + auth + "\"\n" + roots + "[image.image_pull_proxy]\nhttps_proxy = \"@\"\n", tunnels: true,
		},
		"no_proxy": {
			registry: secure, image: usable + `"` + auth + "\"\n" + roots + "[image.image_pull_proxy]\nhttps_proxy = \"@\"\nno_proxy = \"192.0.2.0/24\"\n",
		},
		"http_proxy":        {registry: plain, image: "[image.image_pull_proxy]\nhttp_proxy = \"@\"\n" + insecure, requests: true},
		"the environment's": {registry: plain, image: insecure, env: []string{"HTTP_PROXY=@"}, requests: true},
		"instead of the environment's": {
			registry: plain, image: "[image.image_pull_proxy]\nhttp_proxy = \"@\"\n" + insecure,
			env: []string{"HTTP_PROXY=http://192.0.2.1:1"}, requests: true,
		},
		"a proxy that is gone": {
			registry: plain, image: "[image.image_pull_proxy]\nhttp_proxy = \"http://192.0.2.1:1\"\n" + insecure, fails: "192.0.2.1:1",
		},
		"kernel parameters": {
			registry: secure, cmdline: "quiet agent.https_proxy=@ agent.image_registry_auth=file://" + auth, env: []string{trusted}, tunnels: true,
		},
		"kernel parameters no_proxy": {
			registry: secure, cmdline: "agent.https_proxy=@ agent.no_proxy=192.0.2.1 agent.image_registry_auth=" + auth, env: []string{trusted},
		},
		"kernel parameters policy": {
			registry: secure, cmdline: "agent.image_registry_auth=" + auth + " agent.enable_signature_verification=true agent.image_policy_file=" + reject,
			env: []string{trusted}, fails: "check signature policy",
		},
		"kernel parameters policy not enforced": {
			registry: secure, cmdline: "agent.image_registry_auth=" + auth + " agent.image_policy_file=" + reject, env: []string{trusted},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			p, own := newProxy(t), t.TempDir()
			with := func(s string) string { return strings.ReplaceAll(s, "@", p.URL) }
			j := job{Image: tc.registry.Host() + "/app@" + summary.Digest.String(), Cmdline: own + "/cmdline", RunDir: own + "/run", WorkDir: own + "/work", BundleParent: own + "/bundles"}
			if tc.image != "" {
				j.Config = own + "/cdh.toml"
				g.Expect(os.WriteFile(j.Config, []byte("[image]\n"+with(tc.image)), 0o600)).To(Succeed())
			}
			g.Expect(os.WriteFile(j.Cmdline, []byte(with(tc.cmdline)), 0o600)).To(Succeed())
			env := make([]string, 0, len(tc.env))
			for _, variable := range tc.env {
				env = append(env, with(variable))
			}
			err := j.run(t, env...)
			if tc.fails == "" {
				g.Expect(err).NotTo(HaveOccurred())
			} else {
				g.Expect(err).To(MatchError(ContainSubstring(tc.fails)))
			}
			g.Expect(p.tunnels.Load() > 0).To(Equal(tc.tunnels), "tunnels")
			g.Expect(p.requests.Load() > 0).To(Equal(tc.requests), "requests")
			left, err := os.ReadDir(j.RunDir)
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(left).To(BeEmpty(), "files with credentials")
		})
	}
}
