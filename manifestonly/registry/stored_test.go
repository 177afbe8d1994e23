package registry_test

import (
	"path/filepath"
	"testing"

	"github.com/containers/image/v5/docker"
	"github.com/containers/image/v5/docker/reference"
	"github.com/containers/image/v5/image"
	"github.com/containers/image/v5/signature"
	istorage "github.com/containers/image/v5/storage"
	"github.com/containers/image/v5/types"
	"github.com/containers/storage"
	. "github.com/onsi/gomega"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	"github.com/husk-cri/husk/internal/testkit/signing"
	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/manifestonly/cstore"
	"github.com/husk-cri/husk/manifestonly/registry"
	"github.com/husk-cri/husk/pkg/imageref"
)

// allowedByCRIO asks what CRI-O asks at CreateContainer: whether the policy lets
// the stored image run under the name (internal/storage/image.go, checkSignature).
func allowedByCRIO(t *testing.T, store storage.Store, id imageref.StorageID, name, policyPath string) error {
	t.Helper()
	g := NewWithT(t)
	sys := &types.SystemContext{SignaturePolicyPath: policyPath}
	ref, err := istorage.Transport.NewStoreReference(store, nil, id.String())
	g.Expect(err).NotTo(HaveOccurred())
	src, err := ref.NewImageSource(t.Context(), sys)
	g.Expect(err).NotTo(HaveOccurred())
	defer func() { g.Expect(src.Close()).To(Succeed()) }()
	named, err := reference.ParseNormalizedNamed(name)
	g.Expect(err).NotTo(HaveOccurred())
	asked, err := docker.NewReference(named)
	g.Expect(err).NotTo(HaveOccurred())
	rules, err := signature.DefaultPolicy(sys)
	g.Expect(err).NotTo(HaveOccurred())
	policy, err := signature.NewPolicyContext(rules)
	g.Expect(err).NotTo(HaveOccurred())
	defer func() { g.Expect(policy.Destroy()).To(Succeed()) }()
	allowed, err := policy.IsRunningImageAllowed(t.Context(), image.UnparsedInstanceWithReference(image.UnparsedInstance(src, nil), asked))
	g.Expect(allowed).To(Equal(err == nil))
	return err
}

// What the policy accepted at the pull, CRI-O's own check accepts from the record:
// directly, through an index, and through nested ones, which CRI-O itself does not
// pull. The record's manifest is the instance, so CRI-O never sees the indexes.
func TestCRIOAgreesAboutStoredSignatures(t *testing.T) {
	t.Parallel()
	for title, s := range schemes(t) {
		for depth := range 3 {
			t.Run(title+[]string{"", ", index", ", nested"}[depth], func(t *testing.T) {
				t.Parallel()
				g := NewWithT(t)
				r := fakeregistry.New(t, fakeregistry.Options{})
				p := r.Push(t, "team/app", "v1", fakeregistry.Image{Layers: layers(), Config: imgspec.Image{Config: imgspec.ImageConfig{User: "web"}}})
				name := p
				for range depth {
					name = r.PushIndex(t, "team/app", "multi", name.Entry("linux", "amd64", ""))
				}
				n := signed(t, r, r.Host(), s.require)
				s.sign(t, r, signing.Claim{Reference: name.Reference, Digest: p.Digest}, p.Digest, false)

				root := t.TempDir()
				store, err := cstore.Open(cstore.Options{GraphRoot: filepath.Join(root, "graph"), RunRoot: filepath.Join(root, "run"), Driver: "vfs"})
				g.Expect(err).NotTo(HaveOccurred())
				result, err := manifestonly.Pull(t.Context(), manifestonly.Request{
					Name: name.Reference, Platform: imgspec.Platform{OS: "linux", Architecture: "amd64"},
				}, registry.New(n.config), store)
				g.Expect(err).NotTo(HaveOccurred())
				g.Expect(result.Record.Manifest.Digest()).To(Equal(p.Digest))
				g.Expect(result.Record.Indexes).To(HaveLen(depth))
				g.Expect(result.Pulled.Digest.Digest()).To(Equal(name.Digest))

				crio, err := storage.GetStore(storage.StoreOptions{GraphRoot: filepath.Join(root, "graph"), RunRoot: filepath.Join(root, "crio"), GraphDriverName: "vfs"})
				g.Expect(err).NotTo(HaveOccurred())
				id := result.Record.StorageID
				for _, under := range []string{name.Reference, result.Pulled.Pinned().String(), p.Repository + "@" + p.Digest.String()} {
					g.Expect(allowedByCRIO(t, crio, id, under, n.config.PolicyPath)).To(Succeed(), under)
				}
				g.Expect(allowedByCRIO(t, crio, id, r.Host()+"/team/other:v1", n.config.PolicyPath)).NotTo(Succeed(), "another name")

				ref, err := istorage.Transport.NewStoreReference(crio, nil, id.String())
				g.Expect(err).NotTo(HaveOccurred())
				img, err := ref.NewImage(t.Context(), &types.SystemContext{})
				g.Expect(err).NotTo(HaveOccurred())
				defer func() { g.Expect(img.Close()).To(Succeed()) }()
				config, err := img.OCIConfig(t.Context())
				g.Expect(err).NotTo(HaveOccurred())
				g.Expect(config.Config.User).To(Equal("web"), "CRI-O reads the instance's config")
			})
		}
	}
}

// With the real store, too, a warm pull asks for one manifest and nothing else.
func TestWarmPullFromTheRealStore(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := secure(t)
	p := r.Push(t, "team/app", "v1", fakeregistry.Image{Layers: layers()})
	index := r.PushIndex(t, "team/app", "multi", p.Entry("linux", "amd64", ""))
	root := t.TempDir()
	store, err := cstore.Open(cstore.Options{GraphRoot: filepath.Join(root, "graph"), RunRoot: filepath.Join(root, "run"), Driver: "vfs"})
	g.Expect(err).NotTo(HaveOccurred())
	n := newNode(t)
	var first manifestonly.Result
	for i, want := range [][]string{
		{"GET /v2/", "GET /token", "GET /v2/team/app/manifests/multi", "GET /v2/team/app/manifests/" + p.Digest.String(), "GET /v2/team/app/blobs/" + p.ConfigDigest.String()},
		{"GET /v2/", "GET /token", "GET /v2/team/app/manifests/multi"},
	} {
		r.Forget()
		result, err := manifestonly.Pull(t.Context(), manifestonly.Request{
			Name: index.Reference, Credentials: alice, Platform: imgspec.Platform{OS: "linux", Architecture: "amd64"},
		}, registry.New(n.config), store)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(r.Paths()).To(Equal(want))
		if i == 0 {
			first = result
		}
		g.Expect(result.Record.StorageID).To(Equal(first.Record.StorageID))
		g.Expect(result.Record.Image).To(Equal(first.Record.Image))
	}
}
