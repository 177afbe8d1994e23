package ocisource_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/internal/ocisource"
	"github.com/husk-cri/husk/pkg/errdefs"
)

func TestHostileArchives(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		spoil func(t *testing.T, m made, all []entry) []entry
		kind  errdefs.Kind
	}{
		"index twice": {func(_ *testing.T, _ made, all []entry) []entry {
			return append(all, entry{tar.Header{Name: "index.json", Size: 2}, "{}"})
		}, errdefs.NotAnImage},
		"index is a link": {func(_ *testing.T, _ made, all []entry) []entry {
			return append(without(all, "./index.json"), entry{Header: tar.Header{Name: "index.json", Typeflag: tar.TypeSymlink, Linkname: "/etc/hostname"}})
		}, errdefs.NotAnImage},
		"config is a hard link": {func(_ *testing.T, m made, all []entry) []entry {
			name := "./blobs/sha256/" + m.one.Instances[0].Config.Encoded()
			return append(without(all, name), entry{Header: tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: "index.json"}})
		}, errdefs.NotAnImage},
		"config is a device": {func(_ *testing.T, m made, all []entry) []entry {
			name := "blobs/sha256/" + m.one.Instances[0].Config.Encoded()
			return append(without(all, "./"+name), entry{Header: tar.Header{Name: name, Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 5}})
		}, errdefs.NotAnImage},
		"names that are not canonical": {func(_ *testing.T, _ made, all []entry) []entry {
			all[len(all)-1].Name = "blobs/../" + strings.TrimPrefix(all[len(all)-1].Name, "./")
			for i := range all {
				all[i].Name = strings.ReplaceAll(all[i].Name, "./index.json", "x/../index.json")
			}
			return all
		}, errdefs.NotFound},
		"absolute names": {func(_ *testing.T, _ made, all []entry) []entry {
			for i := range all {
				all[i].Name = strings.TrimPrefix(all[i].Name, ".")
			}
			return all
		}, errdefs.NotFound},
		"blob missing": {func(_ *testing.T, m made, all []entry) []entry {
			return without(all, "./blobs/sha256/"+m.one.Instances[0].Config.Encoded())
		}, errdefs.NotFound},
		"endless entries": {func(_ *testing.T, _ made, all []entry) []entry {
			for n := range ocisource.MaxEntries {
				all = append(all, entry{Header: tar.Header{Name: fmt.Sprint(n)}})
			}
			return all
		}, errdefs.TooLarge},
		"endless headers": {func(_ *testing.T, _ made, all []entry) []entry {
			for range ocisource.MaxHeaderBytes>>19 + 1 {
				all = append(all, entry{Header: tar.Header{Name: "x", PAXRecords: map[string]string{"HUSK.x": strings.Repeat("x", 1<<19)}}})
			}
			return all
		}, errdefs.TooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			m := build(t)
			_, err := read(t, "oci-archive:"+pack(t, tc.spoil(t, m, m.entries(t)))+":one")
			g.Expect(errdefs.KindOf(err)).To(Equal(tc.kind), "%v", err)
		})
	}
}

func without(all []entry, name string) []entry {
	var rest []entry
	for _, e := range all {
		if e.Name != name {
			rest = append(rest, e)
		}
	}
	return rest
}

// TestMangledArchives changes the bytes of an archive.
func TestMangledArchives(t *testing.T) {
	t.Parallel()
	m := build(t)
	whole, err := os.ReadFile(pack(t, m.entries(t)))
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	var zipped bytes.Buffer
	w := gzip.NewWriter(&zipped)
	_, _ = w.Write(whole)
	_ = w.Close()
	// archive/tar writes no sparse files: the type is changed in the header of index.json.
	sparse := bytes.Clone(whole)
	at := bytes.Index(sparse, []byte("./index.json"))
	sparse[at+156] = tar.TypeGNUSparse
	copy(sparse[at+257:], "ustar  \x00")
	size := string(sparse[at+124 : at+136])
	copy(sparse[at+386:], strings.Repeat("0", 11)+"\x00"+size) // one piece, which is all of it
	copy(sparse[at+483:], size)
	checksum(sparse[at : at+512])
	for name, tc := range map[string]struct {
		content []byte
		kind    errdefs.Kind
	}{
		"compressed":   {zipped.Bytes(), errdefs.Unsupported},
		"zstd":         {[]byte("\x28\xb5\x2f\xfdrest"), errdefs.Unsupported},
		"empty":        {nil, errdefs.NotFound},
		"only zeros":   {make([]byte, 4096), errdefs.NotFound},
		"no archive":   {[]byte(strings.Repeat("garbage", 100)), errdefs.NotAnImage},
		"truncated":    {whole[:len(whole)/2], errdefs.NotAnImage},
		"sparse entry": {sparse, errdefs.NotAnImage},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "image.tar")
			NewWithT(t).Expect(os.WriteFile(path, tc.content, 0o600)).To(Succeed())
			_, err := read(t, "oci-archive:"+path+":one")
			NewWithT(t).Expect(errdefs.KindOf(err)).To(Equal(tc.kind), "%v", err)
		})
	}
	t.Run("a FIFO", func(t *testing.T) {
		t.Parallel()
		path := filepath.Join(t.TempDir(), "fifo")
		NewWithT(t).Expect(unix.Mkfifo(path, 0o600)).To(Succeed())
		_, err := read(t, "oci-archive:"+path)
		NewWithT(t).Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotAnImage), "%v", err)
	})
	t.Run("a huge entry that is not there", func(t *testing.T) {
		t.Parallel()
		g := NewWithT(t)
		path := filepath.Join(t.TempDir(), "image.tar")
		var b bytes.Buffer
		g.Expect(tar.NewWriter(&b).WriteHeader(&tar.Header{Name: "index.json", Size: 1 << 40})).To(Succeed())
		g.Expect(os.WriteFile(path, b.Bytes(), 0o600)).To(Succeed())
		_, err := read(t, "oci-archive:"+path)
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotAnImage), "%v", err)
		g.Expect(os.Truncate(path, 1<<41)).To(Succeed()) // and now it is, of holes
		_, err = read(t, "oci-archive:"+path)
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.TooLarge), "%v", err)
	})
}

// checksum makes the checksum of a header right.
func checksum(header []byte) {
	copy(header[148:], "        ")
	sum := 0
	for _, b := range header {
		sum += int(b)
	}
	copy(header[148:], fmt.Sprintf("%06o\x00 ", sum))
}
