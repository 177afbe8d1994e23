package ocisource_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ociarchive "github.com/containers/image/v5/oci/archive"
	ocilayout "github.com/containers/image/v5/oci/layout"
	"github.com/containers/image/v5/pkg/blobinfocache/none"
	"github.com/containers/image/v5/types"
	. "github.com/onsi/gomega"
	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/internal/ocisource"
	"github.com/husk-cri/husk/internal/testkit/images"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// canary is outside every layout; no error and no content may show it.
const canary = "CANARY-outside-the-layout"

// made is a layout with two images, "one" and "two".
type made struct {
	dir      string
	one, two images.Summary
}

func build(t *testing.T) made {
	t.Helper()
	g := NewWithT(t)
	m := made{dir: filepath.Join(t.TempDir(), "layout")}
	var err error
	m.one, err = images.Build(t.Context(), m.dir, "one", images.Spec{Layers: []images.Layer{{Random: 10_000}}})
	g.Expect(err).NotTo(HaveOccurred())
	m.two, err = images.Build(t.Context(), m.dir, "two", images.Spec{Layers: []images.Layer{{Random: 20_000}}})
	g.Expect(err).NotTo(HaveOccurred())
	return m
}

func (m made) blob(d digest.Digest) string {
	return filepath.Join(m.dir, "blobs", "sha256", d.Encoded())
}

// entry is one entry of an archive.
type entry struct {
	tar.Header
	content string
}

// entries are those of an archive of the layout, by tar's usual names.
func (m made) entries(t *testing.T) []entry {
	t.Helper()
	var all []entry
	err := filepath.WalkDir(m.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(m.dir, path)
		all = append(all, entry{tar.Header{Name: "./" + name, Mode: 0o644, Size: int64(len(data))}, string(data)})
		return err
	})
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	return all
}

func pack(t *testing.T, all []entry) string {
	t.Helper()
	g := NewWithT(t)
	path := filepath.Join(t.TempDir(), "image.tar")
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range all {
		g.Expect(w.WriteHeader(&e.Header)).To(Succeed())
		_, err := io.WriteString(w, e.content)
		g.Expect(err).NotTo(HaveOccurred())
	}
	g.Expect(w.Close()).To(Succeed())
	g.Expect(os.WriteFile(path, b.Bytes(), 0o600)).To(Succeed())
	return path
}

// read reads the whole image: manifest, config and layers.
func read(t *testing.T, location string) (digest.Digest, error) {
	t.Helper()
	i, err := ocisource.Open(location)
	if err != nil {
		return "", err
	}
	defer func() { NewWithT(t).Expect(i.Close()).To(Succeed()) }()
	data, _, err := i.GetManifest(t.Context(), nil)
	if err != nil {
		return "", err
	}
	var m imgspec.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return "", err
	}
	for _, d := range append(m.Layers, m.Config) {
		// A URL in a descriptor leads nowhere.
		body, size, err := i.GetBlob(t.Context(), types.BlobInfo{Digest: d.Digest, URLs: []string{"http://127.0.0.1:1/x"}}, none.NoCache)
		if err != nil {
			return "", err
		}
		content, err := io.ReadAll(body)
		if err != nil {
			return "", err
		}
		NewWithT(t).Expect(body.Close()).To(Succeed())
		NewWithT(t).Expect(size).To(Equal(int64(len(content))))
		NewWithT(t).Expect(digest.FromBytes(content)).To(Equal(d.Digest))
	}
	return digest.FromBytes(data), nil
}

func TestChoosesLikeContainersImage(t *testing.T) {
	t.Parallel()
	m := build(t)
	packed := pack(t, m.entries(t))
	single := filepath.Join(t.TempDir(), "single")
	one, err := images.Build(t.Context(), single, "only", images.Spec{})
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	for _, tc := range []struct {
		location string
		want     digest.Digest
		kind     errdefs.Kind
	}{
		{location: "oci:" + m.dir + ":one", want: m.one.Digest},
		{location: "oci:" + m.dir + ":two", want: m.two.Digest},
		{location: "oci:" + m.dir + ":@0", want: m.two.Digest},
		{location: "oci:" + m.dir + ":@1", want: m.one.Digest},
		{location: "oci:" + m.dir + "/../layout:one", want: m.one.Digest},
		{location: "oci-archive:" + packed + ":two", want: m.two.Digest},
		{location: "oci:" + single, want: one.Digest},
		{location: "oci:" + single + ":", want: one.Digest},
		{location: "oci:" + m.dir, kind: errdefs.InvalidArgument},
		{location: "oci-archive:" + packed, kind: errdefs.InvalidArgument},
		{location: "oci:" + m.dir + ":three", kind: errdefs.NotFound},
		{location: "oci:" + m.dir + ":@2", kind: errdefs.NotFound},
		{location: "oci:" + m.dir + ":@-1", kind: errdefs.InvalidArgument},
		{location: "oci:" + m.dir + ":@x", kind: errdefs.InvalidArgument},
		{location: "oci:" + m.dir + ":!", kind: errdefs.InvalidArgument},
		{location: "oci-archive:" + packed + ":@0", kind: errdefs.InvalidArgument},
		{location: "oci:" + m.dir + "/nothing:one", kind: errdefs.NotFound},
		{location: "oci:" + m.dir + "/nothing/at/all", kind: errdefs.NotFound},
		{location: "oci-archive:" + packed + "x:one", kind: errdefs.NotFound},
		{location: "oci-archive:" + m.dir, kind: errdefs.NotAnImage},
		{location: "oci:" + packed, kind: errdefs.NotAnImage},
		{location: "oci:", kind: errdefs.InvalidArgument},
		{location: "docker://registry.test/app", kind: errdefs.InvalidArgument},
	} {
		t.Run(strings.ReplaceAll(tc.location, "/", "_"), func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			got, err := read(t, tc.location)
			if tc.want == "" {
				g.Expect(errdefs.KindOf(err)).To(Equal(tc.kind), "%v", err)
			} else {
				g.Expect(err).NotTo(HaveOccurred())
				g.Expect(got).To(Equal(tc.want))
			}
			theirs, err := chosen(tc.location)
			if tc.want == "" {
				g.Expect(err).To(HaveOccurred(), "containers/image takes %s", theirs)
				return
			}
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(theirs).To(Equal(tc.want))
		})
	}
}

// chosen is what containers/image reads of a location.
func chosen(location string) (digest.Digest, error) {
	if rest, ok := strings.CutPrefix(location, ocisource.Archive); ok {
		ref, err := ociarchive.ParseReference(rest)
		if err != nil {
			return "", err
		}
		d, err := ociarchive.LoadManifestDescriptor(ref)
		return d.Digest, err
	}
	rest, ok := strings.CutPrefix(location, ocisource.Dir)
	if !ok {
		return "", fmt.Errorf("no location: %s", location)
	}
	ref, err := ocilayout.ParseReference(rest)
	if err != nil {
		return "", err
	}
	d, err := ocilayout.LoadManifestDescriptor(ref)
	return d.Digest, err
}

// TestPolicyNames: the signature policy knows a location by the names that
// containers/image gives it, links resolved.
func TestPolicyNames(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	m := build(t)
	packed := pack(t, m.entries(t))
	linked := filepath.Join(t.TempDir(), "link")
	g.Expect(os.Symlink(m.dir, linked)).To(Succeed())
	theirDir, err := ocilayout.ParseReference(linked + ":one")
	g.Expect(err).NotTo(HaveOccurred())
	theirArchive, err := ociarchive.ParseReference(packed + ":one")
	g.Expect(err).NotTo(HaveOccurred())
	for location, theirs := range map[string]types.ImageReference{"oci:" + linked + ":one": theirDir, "oci-archive:" + packed + ":one": theirArchive} {
		i, err := ocisource.Open(location)
		g.Expect(err).NotTo(HaveOccurred())
		ours := i.Reference()
		g.Expect(ours.Transport().Name()).To(Equal(theirs.Transport().Name()))
		g.Expect(ours.PolicyConfigurationIdentity()).To(Equal(theirs.PolicyConfigurationIdentity()))
		g.Expect(ours.PolicyConfigurationNamespaces()).To(Equal(theirs.PolicyConfigurationNamespaces()))
		g.Expect(ours.DockerReference()).To(BeNil())
		g.Expect(i.Path()).To(Equal(theirs.PolicyConfigurationIdentity()))
		g.Expect(i.Close()).To(Succeed())
	}
}

// TestHostileDirectories: nothing outside the layout is read, nothing blocks, nothing
// large is read whole.
func TestHostileDirectories(t *testing.T) {
	t.Parallel()
	outside := filepath.Join(t.TempDir(), "outside")
	replace := func(t *testing.T, path string, make func() error) {
		t.Helper()
		NewWithT(t).Expect(os.RemoveAll(path)).To(Succeed())
		NewWithT(t).Expect(make()).To(Succeed())
	}
	NewWithT(t).Expect(os.WriteFile(outside, []byte(canary), 0o600)).To(Succeed())
	config := func(m made) string { return m.blob(m.one.Instances[0].Config) }
	for name, tc := range map[string]struct {
		spoil func(t *testing.T, m made)
		kind  errdefs.Kind
	}{
		"index is an absolute link": {func(t *testing.T, m made) {
			index := filepath.Join(m.dir, "index.json")
			replace(t, index, func() error { return os.Symlink(outside, index) })
		}, errdefs.NotAnImage},
		"config is an absolute link": {func(t *testing.T, m made) {
			replace(t, config(m), func() error { return os.Symlink(outside, config(m)) })
		}, errdefs.NotAnImage},
		"config is a relative link": {func(t *testing.T, m made) {
			replace(t, config(m), func() error { return os.Symlink("../../../"+filepath.Base(outside), config(m)) })
		}, errdefs.NotAnImage},
		"config is a link to a process's file": {func(t *testing.T, m made) {
			replace(t, config(m), func() error { return os.Symlink("/proc/self/environ", config(m)) })
		}, errdefs.NotAnImage},
		"blobs are a link": {func(t *testing.T, m made) {
			blobs := filepath.Join(m.dir, "blobs")
			g := NewWithT(t)
			moved := filepath.Join(t.TempDir(), "blobs")
			g.Expect(os.Rename(blobs, moved)).To(Succeed())
			g.Expect(os.Symlink(moved, blobs)).To(Succeed())
		}, errdefs.NotAnImage},
		"a link to itself": {func(t *testing.T, m made) {
			replace(t, config(m), func() error { return os.Symlink(filepath.Base(config(m)), config(m)) })
		}, errdefs.NotAnImage},
		"a FIFO": {func(t *testing.T, m made) {
			replace(t, config(m), func() error { return unix.Mkfifo(config(m), 0o600) })
		}, errdefs.NotAnImage},
		"a directory": {func(t *testing.T, m made) {
			replace(t, config(m), func() error { return os.Mkdir(config(m), 0o700) })
		}, errdefs.NotAnImage},
		"a file for a directory": {func(t *testing.T, m made) {
			blobs := filepath.Join(m.dir, "blobs")
			replace(t, blobs, func() error { return os.WriteFile(blobs, nil, 0o600) })
		}, errdefs.NotAnImage},
		"huge sparse index": {func(t *testing.T, m made) {
			NewWithT(t).Expect(os.Truncate(filepath.Join(m.dir, "index.json"), 1<<40)).To(Succeed())
		}, errdefs.TooLarge},
		"huge sparse manifest": {func(t *testing.T, m made) {
			NewWithT(t).Expect(os.Truncate(m.blob(m.one.Digest), 1<<40)).To(Succeed())
		}, errdefs.TooLarge},
		"longer manifest": {func(t *testing.T, m made) {
			NewWithT(t).Expect(os.Truncate(m.blob(m.one.Digest), 3000)).To(Succeed())
		}, errdefs.DigestMismatch},
		"manifest missing": {func(t *testing.T, m made) {
			NewWithT(t).Expect(os.Remove(m.blob(m.one.Digest))).To(Succeed())
		}, errdefs.NotFound},
		"index missing": {func(t *testing.T, m made) {
			NewWithT(t).Expect(os.Remove(filepath.Join(m.dir, "index.json"))).To(Succeed())
		}, errdefs.NotFound},
		"index is no JSON":   {func(t *testing.T, m made) { index(t, m, "{") }, errdefs.NotAnImage},
		"no image":           {func(t *testing.T, m made) { index(t, m, "{}") }, errdefs.NotFound},
		"digest is a path":   {func(t *testing.T, m made) { manifest(t, m, "sha256:../../../outside") }, errdefs.NotAnImage},
		"digest is a sha512": {func(t *testing.T, m made) { manifest(t, m, "sha512:"+strings.Repeat("0", 128)) }, errdefs.NotAnImage},
		"no digest":          {func(t *testing.T, m made) { manifest(t, m, "") }, errdefs.NotAnImage},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			m := build(t)
			tc.spoil(t, m)
			_, err := read(t, "oci:"+m.dir+":one")
			g.Expect(errdefs.KindOf(err)).To(Equal(tc.kind), "%v", err)
			g.Expect(err).To(MatchError(Not(ContainSubstring(canary))))
		})
	}
	NewWithT(t).Expect(os.ReadFile(outside)).To(Equal([]byte(canary)))
}

func index(t *testing.T, m made, content string) {
	t.Helper()
	NewWithT(t).Expect(os.WriteFile(filepath.Join(m.dir, "index.json"), []byte(content), 0o600)).To(Succeed())
}

func manifest(t *testing.T, m made, d string) {
	t.Helper()
	index(t, m, fmt.Sprintf(`{"manifests":[{"mediaType":%q,"digest":%q,"size":2,"annotations":{%q:"one"}}]}`,
		imgspec.MediaTypeImageManifest, d, imgspec.AnnotationRefName))
}

// TestLinksInside: a layout may share its own files.
func TestLinksInside(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	m := build(t)
	config := m.blob(m.one.Instances[0].Config)
	g.Expect(os.Rename(config, filepath.Join(m.dir, "config"))).To(Succeed())
	g.Expect(os.Symlink("../../config", config)).To(Succeed())
	g.Expect(read(t, "oci:"+m.dir+":one")).To(Equal(m.one.Digest))
}

// TestTheDirectoryMayNotChange: a path that is changed after the policy's name for it
// was found is not followed.
func TestTheDirectoryMayNotChange(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	m := build(t)
	moved := m.dir + "-moved"
	g.Expect(os.Rename(m.dir, moved)).To(Succeed())
	g.Expect(os.Symlink(moved, m.dir)).To(Succeed())
	_, err := ocisource.OpenDir(m.dir)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotAnImage), "%v", err)
	_, err = ocisource.OpenDir(moved)
	g.Expect(err).NotTo(HaveOccurred())
}
