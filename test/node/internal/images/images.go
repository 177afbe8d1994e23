// Package images makes the two small images that every test node has in its registry.
package images

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// busybox is Debian's busybox-static.
const busybox = "/bin/busybox"

// Push uploads img under ref to a registry that speaks plain HTTP.
func Push(ctx context.Context, ref string, img v1.Image) error {
	tag, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		return fmt.Errorf("reference %s: %w", ref, err)
	}
	if err := remote.Write(tag, img, remote.WithContext(ctx)); err != nil {
		return fmt.Errorf("push %s: %w", ref, err)
	}
	return nil
}

// Pause is the image of pod sandboxes: the static binary at pausePath and nothing else.
func Pause(pausePath string) (v1.Image, error) {
	b, err := os.ReadFile(pausePath)
	if err != nil {
		return nil, fmt.Errorf("read pause: %w", err)
	}
	return image([]file{{path: "pause", mode: 0o755, data: b}}, v1.Config{Entrypoint: []string{"/pause"}})
}

// Busybox is a small userland: busybox with a link for every applet, a passwd and a group file.
func Busybox(ctx context.Context) (v1.Image, error) {
	b, err := os.ReadFile(busybox)
	if err != nil {
		return nil, fmt.Errorf("read busybox (apt package busybox-static): %w", err)
	}
	list, err := exec.CommandContext(ctx, busybox, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list busybox applets: %w", err)
	}
	files := []file{
		{path: "bin/", mode: 0o755},
		{path: "bin/busybox", mode: 0o755, data: b},
		{path: "etc/", mode: 0o755},
		{path: "etc/passwd", mode: 0o644, data: []byte("root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000:web:/home/web:/bin/sh\n")},
		{path: "etc/group", mode: 0o644, data: []byte("root:x:0:\nweb:x:1000:\n")},
		{path: "home/web/", mode: 0o755, uid: 1000},
		{path: "root/", mode: 0o700},
		{path: "tmp/", mode: 0o1777},
	}
	for _, applet := range strings.Fields(string(list)) {
		if applet != "busybox" {
			files = append(files, file{path: "bin/" + applet, link: "busybox"})
		}
	}
	return image(files, v1.Config{Cmd: []string{"sh"}, Env: []string{"PATH=/bin"}})
}

// file is one entry of a layer: a directory when path ends in a slash, a symbolic link when link is set.
type file struct {
	path, link string
	mode       int64
	uid        int
	data       []byte
}

func image(files []file, cfg v1.Config) (v1.Image, error) {
	b, err := archive(files)
	if err != nil {
		return nil, err
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
	layer, err := tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, fmt.Errorf("make layer: %w", err)
	}
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.AppendLayers(base, layer)
	if err != nil {
		return nil, fmt.Errorf("append layer: %w", err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("image config: %w", err)
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture, cf.Config = "linux", runtime.GOARCH, cfg
	img, err = mutate.ConfigFile(img, cf)
	if err != nil {
		return nil, fmt.Errorf("set image config: %w", err)
	}
	return img, nil
}

func archive(files []file) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{Name: f.path, Mode: f.mode, Uid: f.uid, Gid: f.uid, Size: int64(len(f.data)), Typeflag: tar.TypeReg}
		switch {
		case f.link != "":
			h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.link, 0o777
		case path.Clean(f.path)+"/" == f.path:
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("archive %s: %w", f.path, err)
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, fmt.Errorf("archive %s: %w", f.path, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("archive: %w", err)
	}
	return buf.Bytes(), nil
}
