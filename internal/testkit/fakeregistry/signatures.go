package fakeregistry

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
)

const lookasidePath = "/lookaside/"

// Attachment is one sigstore signature, as cosign attaches it to an image.
type Attachment struct {
	// MediaType of the payload; "" is that of cosign's signatures.
	MediaType string
	// Payload is what is signed.
	Payload []byte
	// Annotations hold the signature, and certificates and log entries.
	Annotations map[string]string
}

// SigstoreMediaType is the media type of cosign's signatures.
const SigstoreMediaType = "application/vnd.dev.cosign.simplesigning.v1+json"

// LookasideURL is the lookaside storage as registries.d names it.
func (r *Registry) LookasideURL() string { return r.URL() + strings.TrimSuffix(lookasidePath, "/") }

// PutSignatures puts simple signatures of a manifest into the lookaside storage,
// in place of those that were there. The repository is that of the reference that
// is pulled, without the host.
func (r *Registry) PutSignatures(repository string, d digest.Digest, signatures ...[]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	base := fmt.Sprintf("%s%s@%s=%s/signature-", lookasidePath, repository, d.Algorithm(), d.Encoded())
	for path := range r.signatures {
		if strings.HasPrefix(path, base) {
			delete(r.signatures, path)
		}
	}
	for i, s := range signatures {
		r.signatures[fmt.Sprintf("%s%d", base, i+1)] = s
	}
}

func (r *Registry) serveSignature(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	signature, ok := r.signatures[req.URL.Path]
	r.mu.Unlock()
	if !ok {
		http.NotFound(w, req)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	_, _ = w.Write(signature)
}

// AttachmentTag is the tag under which the signatures of a manifest are attached.
func AttachmentTag(d digest.Digest) string {
	return strings.Replace(d.String(), ":", "-", 1) + ".sig"
}

// Attach attaches sigstore signatures to a manifest of the repository, in place
// of those that were there.
func (r *Registry) Attach(t TB, repository string, d digest.Digest, attachments ...Attachment) Pushed {
	t.Helper()
	image := Image{}
	for _, a := range attachments {
		image.Layers = append(image.Layers, a.Payload)
	}
	image.Edit = func(m *imgspec.Manifest) {
		for i, a := range attachments {
			m.Layers[i].MediaType = a.MediaType
			if a.MediaType == "" {
				m.Layers[i].MediaType = SigstoreMediaType
			}
			m.Layers[i].Annotations = a.Annotations
		}
	}
	return r.Push(t, repository, AttachmentTag(d), image)
}
