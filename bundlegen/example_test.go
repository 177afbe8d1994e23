package bundlegen_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/husk-cri/husk/bundlegen"
	"github.com/husk-cri/husk/pkg/annotations"
	"github.com/husk-cri/husk/pkg/imageref"
)

// hostSide makes the bundle of a container whose layers this host never sees.
func hostSide(rec imageref.Record, pulled imageref.PulledReference, dir string) error {
	request := bundlegen.Request{ // what a CRI client or a user asks for
		Args: []string{"--port", "8080"}, Env: []string{"MODE=test"}, SupplementalGroups: []int64{2000},
	}
	spec, err := bundlegen.Spec(rec, pulled, request, bundlegen.SpecOptions{
		RewriteOptions: bundlegen.RewriteOptions{ResolvesNames: true}, // sandboxSide does
		Hostname:       "web-0",
		Mounts:         []rspec.Mount{{Destination: "/etc/resolv.conf", Type: "bind", Source: "/run/pod/resolv.conf", Options: []string{"ro", "bind"}}},
		Namespaces: []rspec.LinuxNamespace{
			{Type: rspec.NetworkNamespace, Path: "/run/netns/pod"}, {Type: rspec.PIDNamespace},
			{Type: rspec.IPCNamespace}, {Type: rspec.UTSNamespace}, {Type: rspec.MountNamespace},
		},
		Annotations: map[string]string{annotations.CRIOSandboxID: "4f2a"},
	})
	if err != nil {
		return err
	}
	return bundlegen.WriteBundle(dir, spec)
}

// sandboxSide finishes the spec where the layers are, unpacked at rootfs.
func sandboxSide(spec *rspec.Spec, rootfs string) (bundlegen.Identity, error) {
	user, err := bundlegen.ParseUser(spec.Annotations[annotations.User])
	if err != nil {
		return bundlegen.Identity{}, err
	}
	var volumes []string
	if err := json.Unmarshal([]byte(spec.Annotations[annotations.ImageVolumes]), &volumes); err != nil {
		return bundlegen.Identity{}, err
	}
	return bundlegen.Complete(spec, rootfs, user, volumes) // also Apply the identity to each exec
}

func Example() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	rec, pulled := exampleRecord()
	if err := hostSide(rec, pulled, filepath.Join(dir, "bundle")); err != nil {
		panic(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "bundle", "config.json"))
	if err != nil {
		panic(err)
	}
	var spec *rspec.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		panic(err)
	}
	fmt.Println(spec.Annotations[annotations.CRIOImageName])
	fmt.Println(spec.Process.Args, spec.Process.User.UID)

	rootfs := filepath.Join(dir, "unpacked")
	if err := os.MkdirAll(filepath.Join(rootfs, "etc"), 0o755); err != nil {
		panic(err)
	}
	if err := os.WriteFile(filepath.Join(rootfs, "etc", "passwd"), []byte("web:x:1000:100::/srv:\n"), 0o644); err != nil {
		panic(err)
	}
	id, err := sandboxSide(spec, rootfs)
	if err != nil {
		panic(err)
	}
	fmt.Println(id.UID, id.GID, id.Groups, id.Home)
	// Output:
	// registry.example/web@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
	// [/server --port 8080] 65534
	// 1000 100 [100 2000] /srv
}

// exampleRecord is what manifestonly.Pull returns.
func exampleRecord() (imageref.Record, imageref.PulledReference) {
	manifest, err := imageref.ParseManifestDigest("sha256:" + strings.Repeat("a", 64))
	if err != nil {
		panic(err)
	}
	config, err := imageref.ParseConfigDigest("sha256:" + strings.Repeat("b", 64))
	if err != nil {
		panic(err)
	}
	ref, err := imageref.ParseReference("registry.example/web:1")
	if err != nil {
		panic(err)
	}
	rec := imageref.Record{StorageID: imageref.RecordID(manifest), Manifest: manifest, ConfigDigest: config}
	rec.Image.Config.User, rec.Image.Config.Entrypoint, rec.Image.Config.Cmd = "web", []string{"/server"}, []string{"--help"}
	return rec, imageref.PulledReference{Reference: ref, Digest: manifest}
}

// The code in docs/bundlegen.md is the code above.
func TestDocumentedCodeIsCompiled(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	doc, err := os.ReadFile("../docs/bundlegen.md")
	g.Expect(err).NotTo(HaveOccurred())
	source, err := os.ReadFile("example_test.go")
	g.Expect(err).NotTo(HaveOccurred())
	blocks := strings.Split(string(doc), "```go\n")[1:]
	g.Expect(blocks).To(HaveLen(2))
	for _, block := range blocks {
		code, _, _ := strings.Cut(block, "```")
		g.Expect(string(source)).To(ContainSubstring(code))
	}
}
