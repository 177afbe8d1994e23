package ocisource_test

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containers/image/v5/pkg/blobinfocache/none"
	"github.com/containers/image/v5/types"
	"github.com/opencontainers/go-digest"

	"github.com/husk-cri/husk/internal/ocisource"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// FuzzArchive reads any bytes as an archive: it ends, what it gives is in the archive,
// and each failure has a kind.
func FuzzArchive(f *testing.F) {
	blob := "blobs/sha256/" + strings.Repeat("a", 64)
	d := digest.Digest("sha256:" + strings.Repeat("a", 64))
	index := `{"manifests":[{"digest":"` + d.String() + `","size":4}]}`
	for _, names := range [][2]string{{"index.json", blob}, {"./index.json", "./" + blob}, {blob, "index.json"}, {"x/../index.json", blob}} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, name := range names {
			content := "blob"
			if strings.HasSuffix(name, "index.json") {
				content = index
			}
			if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(content)), PAXRecords: map[string]string{"HUSK.x": "y"}}); err != nil {
				f.Fatal(err)
			}
			if _, err := io.WriteString(w, content); err != nil {
				f.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Add([]byte("\x1f\x8b\x08"))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "image.tar")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		i, err := ocisource.Open("oci-archive:" + path)
		if err != nil {
			if errdefs.KindOf(err) == errdefs.Internal {
				t.Fatalf("not the fault of this machine: %v", err)
			}
			return
		}
		defer func() { _ = i.Close() }()
		if manifest, _, err := i.GetManifest(t.Context(), nil); err == nil && !bytes.Contains(data, manifest) {
			t.Fatalf("the manifest %q is not in the archive", manifest)
		}
		body, size, err := i.GetBlob(t.Context(), types.BlobInfo{Digest: d}, none.NoCache)
		if err != nil {
			return
		}
		content, err := io.ReadAll(body)
		if err != nil || int64(len(content)) != size || !bytes.Contains(data, content) {
			t.Fatalf("the blob has %d of %d bytes: %v", len(content), size, err)
		}
	})
}
