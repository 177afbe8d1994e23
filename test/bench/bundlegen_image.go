package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"time"

	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/husk-cri/husk/bundlegen"
	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/pkg/annotations"
	"github.com/husk-cri/husk/pkg/imageref"
)

// benchImage is an image as applications have them: variables, labels, a volume, ports.
func benchImage() (manifestonly.Image, error) {
	config := imgspec.Image{
		Platform: imgspec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		Config: imgspec.ImageConfig{
			User: "1000:1000", Entrypoint: []string{"/docker-entrypoint.sh"}, Cmd: []string{"serve"}, WorkingDir: "/srv/app", StopSignal: "SIGQUIT",
			Env: []string{"PATH=/usr/local/bin:/usr/bin:/bin"}, Labels: map[string]string{},
			Volumes: map[string]struct{}{"/var/lib/app": {}}, ExposedPorts: map[string]struct{}{"8080/tcp": {}, "9090/tcp": {}},
		},
		RootFS: imgspec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromString("layer")}},
	}
	for i := range 10 {
		config.Config.Env = append(config.Config.Env, fmt.Sprintf("APP_SETTING_%d=value-%d", i, i))
		config.Config.Labels[fmt.Sprintf("org.example.label%d", i)] = "some text of the usual length"
	}
	return imageOf(benchReference, config)
}

// imageOf is an image with this configuration and one layer, as a pull brings it.
func imageOf(name string, config imgspec.Image) (img manifestonly.Image, err error) {
	if img.Config, err = json.Marshal(config); err != nil {
		return img, err
	}
	if err := json.Unmarshal(img.Config, &img.Parsed); err != nil {
		return img, err
	}
	of := digest.FromBytes(img.Config)
	if img.ConfigDigest, err = imageref.ParseConfigDigest(of.String()); err != nil {
		return img, err
	}
	img.Layers, img.LayerBytes = 1, 4
	img.Manifest.Bytes, err = json.Marshal(imgspec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imgspec.MediaTypeImageManifest,
		Config: imgspec.Descriptor{MediaType: imgspec.MediaTypeImageConfig, Digest: of, Size: int64(len(img.Config))},
		Layers: []imgspec.Descriptor{{MediaType: imgspec.MediaTypeImageLayerGzip, Digest: digest.FromString("blob"), Size: img.LayerBytes}},
	})
	if err != nil {
		return img, err
	}
	if img.Manifest.Digest, err = imageref.ParseManifestDigest(digest.FromBytes(img.Manifest.Bytes).String()); err != nil {
		return img, err
	}
	ref, err := imageref.ParseReference(name)
	img.Pulled = imageref.PulledReference{Reference: ref, Digest: img.Manifest.Digest, PulledAt: time.Now().UTC()}
	return img, err
}

// benchRequest is what kubelet sends for a container: the image's command, and the
// variables of the services.
func benchRequest() bundlegen.Request {
	req := bundlegen.Request{Args: []string{"serve", "--port", "8080"}}
	for i := range 10 {
		req.Env = append(req.Env, fmt.Sprintf("SERVICE_%d_HOST=10.0.0.%d", i, i))
	}
	return req
}

func benchSpecOptions() bundlegen.SpecOptions {
	bind := func(to, from string) rspec.Mount {
		return rspec.Mount{Destination: to, Type: "bind", Source: from, Options: []string{"rw", "bind"}}
	}
	return bundlegen.SpecOptions{
		RewriteOptions: bundlegen.RewriteOptions{ResolvesNames: true}, Hostname: "web-0", CgroupsPath: "/husk/bench",
		Mounts: []rspec.Mount{
			bind("/etc/resolv.conf", "/run/pod/resolv.conf"), bind("/etc/hosts", "/run/pod/hosts"), bind("/etc/hostname", "/run/pod/hostname"),
		},
		Annotations: map[string]string{annotations.CRIOSandboxID: "sandbox", annotations.CRIOContainerType: "container"},
	}
}
