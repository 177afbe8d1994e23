package registry_test

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/manifestonly/registry"
	"github.com/husk-cri/husk/manifestonly/storetest"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/registryauth"
)

func TestShortNameModes(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	one, two := fakeregistry.New(t, fakeregistry.Options{}), fakeregistry.New(t, fakeregistry.Options{})
	p := two.Push(t, "app", "v1", fakeregistry.Image{})
	n := newNode(t)
	n.write(t, "registries.conf", fmt.Sprintf("unqualified-search-registries=[%q,%q]\n[aliases]\n\"known\"=%q\n", one.Host(), two.Host(), p.Repository))
	for _, mode := range []string{"", "disabled"} {
		n.config.ShortNameMode = mode
		_, _, err := n.pull(t, manifestonly.Request{Name: "app:v1"})
		g.Expect(err).NotTo(HaveOccurred(), mode)
	}
	one.Forget()
	two.Forget()
	n.config.ShortNameMode = registry.ShortNamesEnforcing
	_, _, err := n.pull(t, manifestonly.Request{Name: "app:v1"})
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument), "%v", err)
	g.Expect(err).To(MatchError(And(ContainSubstring("enforcing"), ContainSubstring("2 images"))))
	g.Expect(append(one.Requests(), two.Requests()...)).To(BeEmpty())
	for _, name := range []string{"known:v1", p.Reference} {
		_, _, err = n.pull(t, manifestonly.Request{Name: name})
		g.Expect(err).NotTo(HaveOccurred(), "unambiguous: %s", name)
	}
	n.write(t, "other.conf", fmt.Sprintf("unqualified-search-registries=[%q]\n", two.Host()))
	n.config.RegistriesConf = filepath.Join(n.dir, "other.conf")
	_, _, err = n.pull(t, manifestonly.Request{Name: "app:v1"})
	g.Expect(err).NotTo(HaveOccurred(), "one candidate")
}

func TestReload(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := fakeregistry.New(t, fakeregistry.Options{})
	p := r.Push(t, "app", "v1", fakeregistry.Image{})
	n := newNode(t)
	source := registry.New(n.config)
	pull := func() error {
		_, err := manifestonly.Pull(t.Context(), manifestonly.Request{Name: p.Reference}, source, &storetest.Memory{})
		return err
	}
	g.Expect(pull()).To(Succeed())
	n.write(t, "registries.conf.d/block.conf", fmt.Sprintf("[[registry]]\nlocation=%q\nblocked=true\n", r.Host()))
	g.Expect(pull()).To(Succeed(), "read once")
	g.Expect(source.Reload()).To(Succeed())
	g.Expect(errdefs.KindOf(pull())).To(Equal(errdefs.Unsupported))

	n.write(t, "registries.conf.d/block.conf", "[[registry")
	g.Expect(errdefs.KindOf(source.Reload())).To(Equal(errdefs.InvalidArgument))
	g.Expect(errdefs.KindOf(pull())).To(Equal(errdefs.Unsupported), "what was valid stays in force")
}

// Mirrors by what they are asked for, in their order, and the upstream last.
func TestPullFromMirror(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	upstream, tags, digests := fakeregistry.New(t, fakeregistry.Options{}), fakeregistry.New(t, fakeregistry.Options{}), fakeregistry.New(t, fakeregistry.Options{})
	all := map[string]*fakeregistry.Registry{"upstream": upstream, "tags": tags, "digests": digests}
	var p fakeregistry.Pushed
	for title, r := range all {
		repository := map[string]string{"upstream": "team/app", "tags": "cache/app", "digests": "cache/app"}[title]
		p = r.Push(t, repository, "v1", fakeregistry.Image{})
	}
	n := newNode(t)
	mirror := "[[registry.mirror]]\nlocation=\"%s/cache\"\ninsecure=true\npull-from-mirror=\"%s-only\"\n"
	n.write(t, "registries.conf", fmt.Sprintf("[[registry]]\nprefix=\"public.test/team\"\nlocation=\"%s/team\"\n"+mirror+mirror,
		upstream.Host(), tags.Host(), "tag", digests.Host(), "digest"))
	asked := func(name string) []string {
		t.Helper()
		for _, r := range all {
			r.Forget()
		}
		result, _, err := n.pull(t, manifestonly.Request{Name: name})
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(result.Pulled.Pinned().String()).To(Equal("public.test/team/app@" + p.Digest.String()))
		var who []string
		for title, r := range all {
			if r.Count("GET", "/manifests/") > 0 {
				who = append(who, title)
			}
		}
		return who
	}
	g.Expect(asked("public.test/team/app:v1")).To(ConsistOf("tags"))
	g.Expect(asked("public.test/team/app@" + p.Digest.String())).To(ConsistOf("digests"))
	digests.On(fakeregistry.Manifest(""), fakeregistry.Status(404, ""))
	// The upstream is tried last. It is insecure by the host in the name, as in CRI-O,
	// and not by the 127/8 that the prefix is rewritten to.
	_, _, err := n.pull(t, manifestonly.Request{Name: "public.test/team/app@" + p.Digest.String()})
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.RegistryUnavailable), "%v", err)
	g.Expect(upstream.Requests()).To(BeEmpty(), "nothing by plain HTTP")
	n.config.InsecureRegistries = []string{"public.test"}
	g.Expect(asked("public.test/team/app@" + p.Digest.String())).To(ConsistOf("digests", "upstream"))
}

// Credentials of the request are for the registry in the name, whatever kind they
// are: a mirror gets none of them.
func TestMirrorGetsNoCredentials(t *testing.T) {
	t.Parallel()
	for title, c := range map[string]registryauth.Credentials{
		"password":       {Username: "u", Password: "p-secret"},
		"auth":           {Auth: basicAlice},
		"identity token": {IdentityToken: "i-secret"},
		"registry token": {RegistryToken: "r-secret"},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			mirror := fakeregistry.New(t, fakeregistry.Options{Bearer: true, Public: []string{"app"}, Username: "m", Password: "m"})
			p := mirror.Push(t, "app", "v1", fakeregistry.Image{})
			n := newNode(t)
			n.write(t, "registries.conf", fmt.Sprintf("[[registry]]\nlocation=\"upstream.test\"\n[[registry.mirror]]\nlocation=%q\ninsecure=true\n", mirror.Host()))
			_, _, err := n.pull(t, manifestonly.Request{Name: "upstream.test/app:v1", Credentials: c})
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(mirror.Asked(p.ConfigDigest.String())).To(BeTrue())
			g.Expect(mirror.Users()).NotTo(ContainElement(fakeregistry.Unknown), "it saw credentials that it does not know")
			g.Expect(mirror.Count("POST", "")).To(BeZero(), "no refresh token was offered")
		})
	}
}

// outside returns an address of this machine that is not in 127.0.0.0/8, where
// certificates are never checked.
func outside(t *testing.T) string {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	for _, a := range addrs {
		if network, ok := a.(*net.IPNet); ok && network.IP.To4() != nil && !network.IP.IsLoopback() {
			return network.IP.String()
		}
	}
	t.Skip("this machine has no address but 127.0.0.1")
	return ""
}

func TestCertificates(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	ca, clients := fakeregistry.NewCA(t), fakeregistry.NewCA(t)
	r := fakeregistry.New(t, fakeregistry.Options{Listen: outside(t) + ":0", CA: ca, ClientCA: clients})
	p := r.Push(t, "app", "v1", fakeregistry.Image{})
	n := newNode(t)
	refused := func(why string) {
		t.Helper()
		_, _, err := n.pull(t, manifestonly.Request{Name: p.Reference, Credentials: alice})
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.RegistryUnavailable), "%s: %v", why, err)
		g.Expect(r.Requests()).To(BeEmpty(), why)
	}
	refused("unknown CA")
	ca.WriteCertsD(t, n.config.CertsD, r.Host(), nil, "")
	refused("no client certificate")
	ca.WriteCertsD(t, n.config.CertsD, r.Host(), clients, "node-1")
	_, _, err := n.pull(t, manifestonly.Request{Name: p.Reference})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(r.Requests()[0].ClientCert).To(Equal("node-1"))
}

// A credential helper runs as the daemon. What it prints when it fails is not for
// everybody who can see an event of the pod.
//
//nolint:paralleltest // helpers are found by PATH
func TestCredentialHelpers(t *testing.T) {
	g := NewWithT(t)
	r := secure(t)
	p := r.Push(t, "team/app", "v1", fakeregistry.Image{})
	n := newNode(t)
	n.write(t, "auth.json", `{"credHelpers":{"`+r.Host()+`":"husktest"}}`)
	t.Setenv("PATH", n.dir+":/usr/bin:/bin")
	helper := func(script string) {
		t.Helper()
		n.write(t, "docker-credential-husktest", "#!/bin/sh\n"+script)
		g.Expect(chmodExecutable(filepath.Join(n.dir, "docker-credential-husktest"))).To(Succeed())
	}
	helper(`printf '{"ServerURL":"%s","Username":"alice","Secret":"a-secret"}' "$(cat)"`)
	_, _, err := n.pull(t, manifestonly.Request{Name: p.Reference})
	g.Expect(err).NotTo(HaveOccurred())

	helper(`printf '{"Username":"alice","Secret":"a-secret"}\nsecond line with a-secret and ` + "`" + `'; exit 1`)
	_, _, err = n.pull(t, manifestonly.Request{Name: p.Reference})
	g.Expect(err).To(MatchError(And(ContainSubstring("exit status 1"), ContainSubstring("REDACTED"))))
	for _, text := range []string{err.Error(), fmt.Sprintf("%v %+v", err, err), errdefs.ToGRPC(err).Error()} {
		g.Expect(strings.Count(text, "a-secret")).To(BeZero(), text)
	}
}
