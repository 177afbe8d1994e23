package keybroker

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containers/ocicrypt/blockcipher"
	encconfig "github.com/containers/ocicrypt/config"
	keyproviderconfig "github.com/containers/ocicrypt/config/keyprovider-config"
	"github.com/containers/ocicrypt/keywrap"
	"github.com/containers/ocicrypt/keywrap/keyprovider"
	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
)

// KeyWrapper is ocicrypt's own key wrapper for a gRPC endpoint.
func (e *Endpoint) KeyWrapper(t TB, name string) keywrap.KeyWrapper {
	t.Helper()
	address, ok := e.Address.(string)
	if e.Method != "grpc" || !ok {
		t.Fatalf("ocicrypt knows no %s providers", e.Method)
	}
	return keyprovider.NewKeyWrapper(name, keyproviderconfig.KeyProviderAttrs{Grpc: address})
}

// Recipients are the parameters with which the wrapper of the provider with this
// name wraps a key.
func Recipients(name string) map[string][][]byte {
	return map[string][][]byte{name: {[]byte(KID)}}
}

// Encrypt encrypts a layer and wraps its key. It is what ocicrypt.EncryptLayer does,
// without the registry of wrappers, which is one for the whole process.
func Encrypt(plain []byte, wrapper keywrap.KeyWrapper, recipients map[string][][]byte) (blob []byte, annotations map[string]string, err error) {
	handler, err := blockcipher.NewLayerBlockCipherHandler()
	if err != nil {
		return nil, nil, err
	}
	reader, finish, err := handler.Encrypt(bytes.NewReader(plain), blockcipher.AES256CTR)
	if err != nil {
		return nil, nil, err
	}
	if blob, err = io.ReadAll(reader); err != nil {
		return nil, nil, err
	}
	options, err := finish()
	if err != nil {
		return nil, nil, err
	}
	options.Private.Digest = digest.FromBytes(plain)
	private, err := json.Marshal(options.Private)
	if err != nil {
		return nil, nil, err
	}
	public, err := json.Marshal(options.Public)
	if err != nil {
		return nil, nil, err
	}
	packet, err := wrapper.WrapKeys(&encconfig.EncryptConfig{Parameters: recipients}, private)
	if err != nil {
		return nil, nil, fmt.Errorf("wrap key: %w", err)
	}
	return blob, map[string]string{
		wrapper.GetAnnotationID():              base64.StdEncoding.EncodeToString(packet),
		"org.opencontainers.image.enc.pubopts": base64.StdEncoding.EncodeToString(public),
	}, nil
}

// EncryptLayout replaces an image of one platform in the OCI layout at dir by one
// with all layers encrypted, and returns its manifest. See [Encrypt].
func EncryptLayout(t TB, dir, tag string, wrapper keywrap.KeyWrapper, recipients map[string][][]byte) imgspec.Manifest {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("encrypt %s:%s: %v", dir, tag, err)
		}
	}
	blob := func(d digest.Digest) string { return filepath.Join(dir, "blobs", d.Algorithm().String(), d.Encoded()) }
	put := func(desc *imgspec.Descriptor, data []byte) {
		t.Helper()
		desc.Digest, desc.Size = digest.FromBytes(data), int64(len(data))
		must(os.WriteFile(blob(desc.Digest), data, 0o644))
	}
	var index imgspec.Index
	var manifest imgspec.Manifest
	indexPath := filepath.Join(dir, imgspec.ImageIndexFile)
	must(readJSON(indexPath, &index))
	for i := range index.Manifests {
		top := &index.Manifests[i]
		if top.Annotations[imgspec.AnnotationRefName] != tag {
			continue
		}
		must(readJSON(blob(top.Digest), &manifest))
		for j := range manifest.Layers {
			layer := &manifest.Layers[j]
			plain, err := os.ReadFile(blob(layer.Digest))
			must(err)
			encrypted, annotations, err := Encrypt(plain, wrapper, recipients)
			must(err)
			put(layer, encrypted)
			layer.MediaType += "+encrypted"
			layer.Annotations = annotations
		}
		data, err := json.Marshal(manifest)
		must(err)
		put(top, data)
		data, err = json.Marshal(index)
		must(err)
		must(os.WriteFile(indexPath, data, 0o644))
		return manifest
	}
	must(errors.New("no image with this tag"))
	return manifest
}

func readJSON(path string, into any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}
