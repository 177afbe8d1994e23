package images

import (
	"archive/tar"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
)

const rootPasswd = "root:x:0:0:root:/root:/bin/sh\n"
const rootGroup = "root:x:0:\n"

// applets are the busybox commands that the images offer.
const applets = "sh ash cat chmod chown cp cut date dd df du echo env expr false find free grep head hostname httpd id " +
	"ifconfig ip kill ln ls md5sum mkdir mkfifo mknod mktemp more mount mv nc netstat nslookup od pidof ping printf ps pwd " +
	"readlink realpath rm rmdir route sed seq setsid sha256sum sleep sort stat stty sync tail tar tee test timeout top touch " +
	"tr true tty umount uname uniq usleep vi wc wget which whoami xargs yes"

func busyboxLayer(spec Spec) (Layer, error) {
	binary, err := os.ReadFile(spec.Busybox)
	if err != nil {
		return Layer{}, fmt.Errorf("read busybox (install busybox-static): %w", err)
	}
	passwd, group := spec.Passwd, spec.Group
	if passwd == "" {
		passwd = rootPasswd
	}
	if group == "" {
		group = rootGroup
	}
	return Layer{
		Files: []File{
			{Path: "/bin/busybox", Content: binary, Mode: 0o755},
			{Path: "/etc/passwd", Content: []byte(passwd)},
			{Path: "/etc/group", Content: []byte(group)},
		},
		Tar: func(tw *tar.Writer) error {
			for _, dir := range []string{"root", "tmp", "proc", "sys", "dev", "run", "var", "home"} {
				mode := int64(0o755)
				switch dir {
				case "tmp":
					mode = 0o1777
				case "root":
					mode = 0o700
				}
				if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: mode, ModTime: Epoch}); err != nil {
					return err
				}
			}
			for _, name := range strings.Fields(applets) {
				if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + name, Linkname: "busybox", Mode: 0o777, ModTime: Epoch}); err != nil {
					return err
				}
			}
			return nil
		},
	}, nil
}

// writeTar writes the layer as a tar stream.
func (layer Layer) writeTar(w io.Writer, seed uint64) error {
	tw := tar.NewWriter(w)
	made := map[string]bool{}
	for _, f := range layer.Files {
		if err := writeFile(tw, f, made); err != nil {
			return err
		}
	}
	if layer.Random > 0 {
		name := fmt.Sprintf("random-%d", seed)
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: layer.Random, Mode: 0o644, ModTime: Epoch}); err != nil {
			return err
		}
		var key [32]byte
		binary.LittleEndian.PutUint64(key[:], seed)
		if _, err := io.CopyN(tw, rand.NewChaCha8(key), layer.Random); err != nil {
			return err
		}
	}
	if layer.Tar != nil {
		if err := layer.Tar(tw); err != nil {
			return err
		}
	}
	return tw.Close()
}

// writeFile writes f and entries for those of its parents that made lacks.
func writeFile(tw *tar.Writer, f File, made map[string]bool) error {
	name := strings.TrimPrefix(path.Clean("/"+f.Path), "/")
	parts := strings.Split(name, "/")
	for i := 1; i < len(parts); i++ {
		dir := strings.Join(parts[:i], "/")
		if made[dir] {
			continue
		}
		made[dir] = true
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755, ModTime: Epoch}); err != nil {
			return err
		}
	}
	mode := f.Mode
	if mode == 0 {
		mode = 0o644
	}
	hdr := &tar.Header{
		Typeflag: tar.TypeReg, Name: name, Size: int64(len(f.Content)), Mode: mode,
		Uid: f.UID, Gid: f.GID, ModTime: Epoch,
	}
	if err := tw.WriteHeader(hdr); err != nil {
		return err
	}
	_, err := tw.Write(f.Content)
	return err
}

// putLayer streams the layer into the layout; it returns its descriptor and diff ID.
func (l *layout) putLayer(layer Layer, c Compression, seed uint64) (imgspec.Descriptor, digest.Digest, error) {
	diffID := digest.SHA256.Digester()
	mediaType, err := layerMediaType(c)
	if err != nil {
		return imgspec.Descriptor{}, "", err
	}
	desc, err := l.put(mediaType, func(w io.Writer) error {
		cw, err := compressor(w, c)
		if err != nil {
			return err
		}
		if err := layer.writeTar(io.MultiWriter(cw, diffID.Hash()), seed); err != nil {
			return err
		}
		return cw.Close()
	})
	return desc, diffID.Digest(), err
}

func layerMediaType(c Compression) (string, error) {
	switch c {
	case Gzip, "":
		return imgspec.MediaTypeImageLayerGzip, nil
	case Zstd:
		return imgspec.MediaTypeImageLayerZstd, nil
	case None:
		return imgspec.MediaTypeImageLayer, nil
	}
	return "", fmt.Errorf("unknown compression %q", c)
}

func compressor(w io.Writer, c Compression) (io.WriteCloser, error) {
	switch c {
	case Zstd:
		return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
	case None:
		return nopCloser{w}, nil
	default:
		return gzip.NewWriterLevel(w, gzip.BestSpeed)
	}
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
