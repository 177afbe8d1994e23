package main

import (
	"runtime"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
)

// dockerLayer is the media type of an uncompressed layer of docker schema 2.
const dockerLayer = "application/vnd.docker.image.rootfs.diff.tar"

// imageCases: formats, and what is not there.
func imageCases(w *world) []testCase {
	r := w.registry("images", fakeregistry.Options{})
	down := w.registry("images-down", fakeregistry.Options{})
	w.add(plain("", r.Host()), plain("", down.Host()))
	down.Stop()
	oci := w.push(r, "oci", "v1", "an OCI image")
	docker := w.image("docker schema 2")
	docker.Docker, docker.Edit = true, layerType(dockerLayer)
	w.pushImage(r, "docker", "v1", docker)
	zero := "sha256:0000000000000000000000000000000000000000000000000000000000000000"

	here, there := w.push(r, "index", "here", "this platform"), w.push(r, "index", "there", "another platform")
	arch := runtime.GOARCH
	r.PushIndex(w.tb, "index", "v1", there.Entry("linux", "s390x", ""), here.Entry("linux", arch, ""))
	index := r.PushIndex(w.tb, "index", "only-there", there.Entry("linux", "s390x", ""), there.Entry("windows", arch, ""))
	nested := r.PushIndex(w.tb, "index", "nested", index.Entry("", "", ""), r.PushIndex(w.tb, "index", "inner", here.Entry("linux", arch, "")).Entry("linux", arch, ""))

	artifact := w.image("no image")
	artifact.Edit = func(m *imgspec.Manifest) {
		m.ArtifactType, m.Config.MediaType = "application/vnd.husk.test", "application/vnd.husk.test+json"
	}
	w.pushImage(r, "artifact", "v1", artifact)
	ask := func(name string) pull { return pull{image: r.Host() + "/" + name} }
	return []testCase{
		{Name: "OCI", pull: ask("oci:v1"), Want: classOK, From: "images"},
		{Name: "by digest", pull: ask("oci@" + oci.Digest.String()), Want: classOK, From: "images"},
		{Name: "by tag and digest", pull: ask("oci:v1@" + oci.Digest.String()), Want: classOK, From: "images"},
		{Name: "docker schema 2", pull: ask("docker:v1"), Want: classOK, From: "images"},
		{Name: "index", pull: ask("index:v1"), Want: classOK, From: "images"},
		{Name: "instance of an index, by digest", pull: ask("index@" + here.Digest.String()), Want: classOK, From: "images"},
		{Name: "index without this platform", pull: ask("index:only-there"), Want: classPlatform},
		{
			Name: "nested index", pull: pull{image: nested.Reference}, Want: classOther,
			Differs: &difference{Why: "containers/image does not look into an index of an index; Husk does", Want: classOK},
		},
		{
			Name: "artifact", pull: ask("artifact:v1"), Want: classOK,
			Differs: &difference{Why: "CRI-O 1.34 keeps artifacts, to mount them; no container runs from one, so Husk refuses", Want: classArtifact},
		},
		{Name: "missing tag", pull: ask("oci:none"), Want: classMissing, From: "images"},
		{Name: "missing repository", pull: ask("none:v1"), Want: classMissing, From: "images"},
		{Name: "missing digest", pull: ask("oci@" + zero), Want: classMissing, From: "images"},
		{Name: "registry down", pull: pull{image: down.Host() + "/app:v1"}, Want: classRefused},
	}
}
