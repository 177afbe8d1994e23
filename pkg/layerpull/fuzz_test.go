package layerpull

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/imageref"
)

// FuzzUnpack unpacks anything: it must not panic, and nothing outside the layer's
// directory may change, be it a file, a mode or a time.
func FuzzUnpack(f *testing.F) {
	if os.Geteuid() != 0 {
		f.Skip("needs root, or the kernel would refuse what the unpacker must")
	}
	reg := func(name string) tar.Header { return header(name, tar.TypeReg) }
	hard := func(name, target string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target}
	}
	for _, headers := range [][]tar.Header{
		{reg("a"), header("d/", tar.TypeDir), linkTo("d/l", "../a"), hard("h", "a")},
		{reg("../canary"), reg("d/../../canary")},
		{linkTo("l", ".."), reg("l/canary"), hard("h", "l/canary"), reg("h")},
		{linkTo("l", "../.."), reg("l/.wh.canary"), reg("l/.wh..wh..opq")},
		{linkTo("l", "../canary"), reg("l"), linkTo("m", "l"), header("m", tar.TypeDir)},
		{reg(".wh..wh..opq"), reg(".wh..."), reg("a/.wh.b"), header("a/b", tar.TypeDir)},
		{reg("a/.wh.b"), reg("a/.wh..wh..opq"), reg("a/b/c")},
		{{Name: "c", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}, {Name: "f", Typeflag: tar.TypeFifo}, {Name: "b", Typeflag: tar.TypeBlock}},
		{{Name: "x", Typeflag: tar.TypeReg, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b", "SCHILY.xattr.security.capability": "c"}}},
		{reg(strings.Repeat("long/", 60) + "name"), {Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "c"}}},
		{header("./", tar.TypeDir), linkTo("./", ".."), hard("h", "../canary")},
	} {
		f.Add(archive(f, entries(headers...)))
	}
	for _, name := range []string{"sparse-gnu.tar", "sparse-pax.tar"} {
		data, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		outside := t.TempDir()
		parent := filepath.Join(outside, "parent")
		root := filepath.Join(parent, "layer")
		if err := os.MkdirAll(root, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, dir := range []string{outside, parent} {
			writeFile(t, filepath.Join(dir, "canary"), "untouched")
			old := time.Unix(1_000_000_000, 0)
			if err := os.Chtimes(dir, old, old); err != nil {
				t.Fatal(err)
			}
		}
		before := snapshot(t, outside, root)
		// Refused or not is for the other tests.
		_, _ = newUnpacker(root, Limits{LayerBytes: 4 << 20, LayerEntries: 256}).unpack(t.Context(), bytes.NewReader(data))
		if after := snapshot(t, outside, root); after != before {
			t.Errorf("outside the layer, it was\n%s\nand is\n%s", before, after)
		}
		if n := fds(t, outside); n != 0 {
			t.Errorf("%d directories left open", n)
		}
	})
}

// snapshot describes all below dir but what is in root.
func snapshot(t *testing.T, dir, root string) string {
	t.Helper()
	var out strings.Builder
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == root {
			return filepath.SkipDir
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		fmt.Fprintf(&out, "%s mode %o owner %d:%d links %d modified %d.%d", path, st.Mode, st.Uid, st.Gid, st.Nlink, st.Mtim.Sec, st.Mtim.Nsec)
		if d.Type().IsRegular() {
			fmt.Fprintf(&out, " content %q", read(t, path))
		}
		out.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// FuzzLayer gives anything to the whole pass of a layer: it must not panic, must end, and
// must believe nothing that is not what the image config says.
func FuzzLayer(f *testing.F) {
	if os.Geteuid() != 0 {
		f.Skip("needs root, or the kernel would refuse what the unpacker must")
	}
	plain := archive(f, entries(header("a", tar.TypeReg), header("d/", tar.TypeDir)))
	good := digest.FromBytes(plain)
	for _, seed := range [][]byte{
		plain, gzipped(plain), append(gzipped(plain), gzipped(nil)...), zstdFrame(f, plain, minZstdWindow),
		append(zstdFrame(f, plain, 1<<20), skippable([]byte("toc"))...), gzipped(plain)[:20], append(plain, 'x'), nil, gzipMagic, zstdMagic,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		p := &puller{limits: Limits{LayerBytes: 4 << 20, LayerEntries: 256}.withDefaults(), decoders: newDecoders()}
		defer p.decoders.close()
		p.room.Store(4 << 20)
		l := layer{size: int64(len(data)), diffID: good}
		_, err := p.decode(t.Context(), l, dir, bytes.NewReader(data), func(r io.Reader) (io.Reader, error) { return r, nil })
		if n := fds(t, dir); n != 0 {
			t.Errorf("%d directories left open", n)
		}
		if err == nil && read(t, dir, "a") != marker {
			t.Error("accepted without its content")
		}
		if !p.decoders.budget.TryAcquire(zstdBudget) {
			t.Error("memory for zstd was not given back")
		}
	})
}

// FuzzRecord reads anything as the record of an image: what it makes of it has only
// directories of the store.
func FuzzRecord(f *testing.F) {
	const ref = "registry.example/app@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	f.Add(`{"reference":"` + ref + `","manifest":"sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
		"config":"sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef","diffIDs":[],"image":{}}`)
	f.Add(`{"reference":"` + ref + `","diffIDs":["sha256:../../etc","sha512:00",""]}`)
	f.Add(`{"reference":"registry.example/other","location":"oci:/x"}`)
	f.Add(`[`)
	pinned, err := imageref.ParseReference(ref)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		store, err := OpenStore(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, store.path("images", recordName(pinned)), text)
		img, ok := store.load(pinned)
		for _, dir := range img.LayerDirs {
			if !ok || filepath.Dir(dir) != store.path("layers", "") {
				t.Errorf("layer directory %s", dir)
			}
		}
		_, _ = store.Images() // an error or a list, and no panic
	})
}
