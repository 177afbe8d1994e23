package registry_test

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/manifestonly/registry"
	"github.com/husk-cri/husk/manifestonly/storetest"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/registryauth"
)

// authFile writes what crio-credential-provider writes for the namespace ns and an
// image, with the credentials of alice, and returns where.
func (n *node) authFile(t *testing.T, repository, host string) string {
	t.Helper()
	n.config.NamespacedAuthDir = filepath.Join(n.dir, "auth")
	name := fmt.Sprintf("auth/ns-%x.json", sha256.Sum256([]byte(repository)))
	return n.write(t, name, `{"auths":{"`+host+`":{"auth":"`+basicAlice+`"}}}`)
}

// files lists what is left below the auth directory.
func (n *node) files(g Gomega) []string {
	var left []string
	g.Expect(filepath.WalkDir(n.config.NamespacedAuthDir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			left = append(left, path)
		}
		return err
	})).To(Succeed())
	return left
}

const basicAlice = "YWxpY2U6YS1zZWNyZXQ=" // alice:a-secret

func TestNamespacedAuthFile(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := secure(t)
	p := r.Push(t, "team/app", "v1", fakeregistry.Image{})
	n := newNode(t)
	n.authFile(t, p.Repository, r.Host())
	ns := manifestonly.Request{Name: p.Reference, Namespace: "ns"}

	_, _, err := n.pull(t, manifestonly.Request{Name: p.Reference, Namespace: "other"})
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Unauthorized), "another namespace's: %v", err)
	_, _, err = n.pull(t, manifestonly.Request{Name: p.Reference})
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Unauthorized), "no namespace: %v", err)
	g.Expect(n.files(g)).To(HaveLen(1))

	gate := fakeregistry.NewGate()
	r.On(fakeregistry.Blob(""), gate.Fault())
	done := make(chan error, 1)
	go func() {
		_, _, err := n.pull(t, ns)
		done <- err
	}()
	<-gate.Arrived()
	g.Expect(n.files(g)).To(BeEmpty(), "a pull that is killed leaves nothing")
	gate.Open()
	g.Expect(<-done).To(Succeed())
	r.Heal()
	_, _, err = n.pull(t, ns)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Unauthorized), "%v", err)

	// A pull that fails uses it up as well.
	n.authFile(t, p.Repository, r.Host())
	r.On(fakeregistry.Manifest(""), fakeregistry.Status(404, ""))
	_, _, err = n.pull(t, ns)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound), "%v", err)
	g.Expect(n.files(g)).To(BeEmpty())
	r.Heal()

	// The request's own credentials win.
	n.authFile(t, p.Repository, r.Host())
	_, _, err = n.pull(t, manifestonly.Request{Name: p.Reference, Namespace: "ns", Credentials: registryauth.Credentials{Username: "x", Password: "y"}})
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Unauthorized), "%v", err)
}

// The file is found by the name that kubelet gave the provider, and serves all
// registries that the short name may mean.
func TestNamespacedAuthFileOfAShortName(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	empty, r := fakeregistry.New(t, fakeregistry.Options{}), secure(t)
	p := r.Push(t, "app", "v1", fakeregistry.Image{})
	n := newNode(t)
	n.write(t, "registries.conf", fmt.Sprintf("unqualified-search-registries=[%q,%q]\n", empty.Host(), r.Host()))
	n.authFile(t, "docker.io/library/app", r.Host())
	result, _, err := n.pull(t, manifestonly.Request{Name: "app:v1", Namespace: "ns"})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(result.Pulled.Reference.String()).To(Equal(p.Reference))
	g.Expect(n.files(g)).To(BeEmpty())
}

// A namespace cannot reach a file elsewhere, and removes none.
func TestNamespacedAuthFileStaysInItsDirectory(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := secure(t)
	p := r.Push(t, "team/app", "v1", fakeregistry.Image{})
	n := newNode(t)
	canary := n.authFile(t, p.Repository, r.Host())
	n.config.NamespacedAuthDir = filepath.Join(n.dir, "auth", "deeper")
	g.Expect(os.Mkdir(n.config.NamespacedAuthDir, 0o700)).To(Succeed())
	for _, namespace := range []string{"../ns", "..", "/ns", "../auth/ns"} {
		_, err := manifestonly.Pull(t.Context(), manifestonly.Request{Name: p.Reference, Namespace: namespace}, registry.New(n.config), &storetest.Memory{})
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.InvalidArgument), "%s: %v", namespace, err)
	}
	g.Expect(canary).To(BeAnExistingFile())
	g.Expect(r.Requests()).To(BeEmpty())
}
