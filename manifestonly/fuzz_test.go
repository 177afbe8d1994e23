package manifestonly_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/manifestonly/storetest"
)

// linked returns body with the digest and the size of other in the places that it
// names, so that a changed body still leads to the next one.
func linked(body, other []byte) []byte {
	body = bytes.ReplaceAll(body, []byte("DIGEST"), []byte(digest.FromBytes(other)))
	return bytes.ReplaceAll(body, []byte(`"SIZE"`), []byte(strconv.Itoa(len(other))))
}

// FuzzFetch lets a registry answer with anything. Whatever comes, it ends in an
// error or in an image that holds together.
func FuzzFetch(f *testing.F) {
	const (
		config   = `{"architecture":"amd64","os":"linux","config":{"User":"web","Env":["A=b"]},"rootfs":{"type":"layers","diff_ids":[]}}`
		manifest = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"DIGEST","size":"SIZE"},"layers":[%s]}`
		index    = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"DIGEST","size":"SIZE"%s}]}`
		layer    = `{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":7}`
		platform = `,"platform":{"architecture":"amd64","os":"linux"}`
	)
	plain := fmt.Sprintf(manifest, "")
	f.Add([]byte(plain), []byte(plain), []byte(config), []byte("\xa0sig"))
	f.Add(fmt.Appendf(nil, manifest, layer), []byte(""), []byte("{}"), []byte(""))
	f.Add(fmt.Appendf(nil, index, platform), fmt.Appendf(nil, manifest, layer+","+layer), []byte(config), []byte(""))
	f.Add(fmt.Appendf(nil, index, ""), []byte(plain), []byte(config), []byte("\x00sigstore-json\n{}"))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[]}`), []byte(""), []byte(""), []byte(""))
	f.Add([]byte(`{"schemaVersion":1,"fsLayers":[]}`), []byte(""), []byte(""), []byte(""))
	f.Add([]byte(plain), []byte(""), []byte(`{"config":{"ExposedPorts":[]}}`), []byte(""))
	f.Add([]byte(`{"schemaVersion":2,"artifactType":"a/b","config":{"digest":"DIGEST","size":"SIZE"}}`), []byte(""), []byte("{}"), []byte(""))
	f.Fuzz(func(t *testing.T, top, manifest, config, signature []byte) {
		manifest = linked(manifest, config)
		next := config
		if bytes.Contains(top, []byte("manifests")) {
			next = manifest
		}
		top = linked(top, next)
		s := &source{
			tags:  map[string][]byte{name: top},
			blobs: map[string][]byte{digest.FromBytes(manifest).String(): manifest, digest.FromBytes(config).String(): config},
			sigs:  [][]byte{signature},
		}
		img, _, err := manifestonly.Fetch(t.Context(), manifestonly.Request{Name: name, Platform: amd64}, s, nil)
		if err != nil {
			return
		}
		if !bytes.Equal(img.Config, config) || digest.FromBytes(img.Manifest.Bytes) != img.Manifest.Digest.Digest() {
			t.Fatalf("not what was served: %+v", img)
		}
		if img.Pulled.Digest.Digest() != digest.FromBytes(top) || img.LayerBytes < 0 || img.Layers > manifestonly.MaxLayers {
			t.Fatalf("accepted %+v", img)
		}
		record, err := manifestonly.Commit(t.Context(), img, &storetest.Memory{})
		if err != nil {
			t.Fatalf("what was fetched cannot be committed: %v", err)
		}
		sent, err := json.Marshal(img)
		if err != nil {
			t.Fatal(err)
		}
		var got manifestonly.Image
		if err := json.Unmarshal(sent, &got); err != nil {
			t.Fatal(err)
		}
		if again, err := manifestonly.Commit(t.Context(), got, &storetest.Memory{}); err != nil || again.StorageID != record.StorageID {
			t.Fatalf("another record from another process: %v", err)
		}
	})
}
