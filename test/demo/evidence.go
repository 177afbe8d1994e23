package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/husk-cri/husk/test/internal/rig"
)

// Evidence is what the demo proves. Everything in it is read from the registry's
// access log, CRI answers and the disk, never from Husk's own claims.
type Evidence struct {
	BaselineError string            `json:"baseline_error"`
	Image         ImageEvidence     `json:"image"`
	Host          HostEvidence      `json:"host"`
	Sandbox       SandboxEvidence   `json:"sandbox"`
	Container     ContainerEvidence `json:"container"`
	Storage       StorageEvidence   `json:"storage"`

	kind         string
	instance     string // the manifest digest of this machine's platform
	wantUser     string
	wantOutput   string
	marker       string
	markerInPod  bool
	layerDigests []string
}

// ImageEvidence is the image as it was built.
type ImageEvidence struct {
	Ref             string `json:"ref"`
	ManifestDigest  string `json:"manifest_digest"` // what the tag resolves to
	ImageID         string `json:"image_id"`
	Layers          int    `json:"layers"`
	EncryptedLayers int    `json:"encrypted_layers"`
	LayerBytes      int64  `json:"layer_bytes"`
}

// HostEvidence is what the host's address asked the registry for.
type HostEvidence struct {
	Requests      []rig.Request `json:"requests"`
	LayerRequests int           `json:"layer_requests"`
	Bytes         int64         `json:"bytes"`
}

// SandboxEvidence is what the pod's address asked the registry for.
type SandboxEvidence struct {
	PodIP         string `json:"pod_ip"`
	LayerRequests int    `json:"layer_requests"`
}

// ContainerEvidence is what CRI and the container say.
type ContainerEvidence struct {
	State    string `json:"state"`
	ImageRef string `json:"image_ref"`
	ImageID  string `json:"image_id"`
	User     string `json:"user"`
	Output   string `json:"output"`
}

// StorageEvidence is what is on the host's disk while the container runs.
type StorageEvidence struct {
	RecordBytes         int64 `json:"record_bytes"`
	LayersAdded         int   `json:"layers_added"`
	HostFilesWithSecret int   `json:"host_files_with_secret"`
}

func (e *Evidence) write(path string) error {
	data, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}

// requests splits the access log by who asked.
func (e *Evidence) requests(log []rig.Request, hostIP string) {
	for _, q := range log {
		layer := e.isLayer(q)
		switch q.Remote {
		case hostIP, "127.0.0.1":
			e.Host.Requests = append(e.Host.Requests, q)
			e.Host.Bytes += q.Bytes
			if layer {
				e.Host.LayerRequests++
			}
		case e.Sandbox.PodIP:
			if layer && q.Method == http.MethodGet {
				e.Sandbox.LayerRequests++
			}
		}
	}
}

// isLayer reports whether a GET or HEAD names a layer of the image, whatever the
// path around the digest looks like.
func (e *Evidence) isLayer(q rig.Request) bool {
	if q.Method != http.MethodGet && q.Method != http.MethodHead {
		return false
	}
	for _, d := range e.layerDigests {
		if strings.Contains(q.Path, strings.TrimPrefix(d, "sha256:")) {
			return true
		}
	}
	return false
}

// check lists everything that is not as it must be.
func (e *Evidence) check() []error {
	var wrong []error
	must := func(ok bool, format string, args ...any) {
		if !ok {
			wrong = append(wrong, fmt.Errorf(format, args...))
		}
	}
	if e.Image.EncryptedLayers > 0 {
		must(strings.Contains(e.BaselineError, "missing private key"), "stock CRI-O should fail for want of a key, and said %q", e.BaselineError)
	} else {
		must(e.BaselineError == "", "stock CRI-O should pull a plain image, and said %q", e.BaselineError)
	}
	must((e.kind == "plain") == (e.Image.EncryptedLayers == 0), "%d encrypted layers in a %s image", e.Image.EncryptedLayers, e.kind)
	must(e.Image.Layers >= 2, "the image has %d layers, want two or more", e.Image.Layers)
	must(len(e.Host.Requests) > 0 && e.Host.Bytes > 0, "the host asked the registry for nothing: the access log is not what it should be")
	must(e.Host.LayerRequests == 0, "the host asked for layers %d times", e.Host.LayerRequests)
	must(e.Host.Bytes < e.Image.LayerBytes, "the host read %d bytes, the layers have %d", e.Host.Bytes, e.Image.LayerBytes)
	must(e.Sandbox.PodIP != "", "the pod has no address")
	must(e.Sandbox.LayerRequests == e.Image.Layers, "the pod fetched layers %d times, the image has %d", e.Sandbox.LayerRequests, e.Image.Layers)
	must(e.Container.State == "CONTAINER_RUNNING", "the container is %s", e.Container.State)
	must(e.Container.ImageID == e.Image.ImageID, "image_id is %s", e.Container.ImageID)
	repo := strings.TrimSuffix(e.Image.Ref, ":latest")
	must(e.Container.ImageRef == repo+"@"+e.Image.ManifestDigest, "image_ref is %s", e.Container.ImageRef)
	must(e.Container.User == e.wantUser, "the user is %q, want %q", e.Container.User, e.wantUser)
	must(e.Container.Output == e.wantOutput, "the output is %q, want %q", e.Container.Output, e.wantOutput)
	must(e.markerInPod, "the secret is not in the container: what is searched for on the host would never be found")
	must(e.Storage.RecordBytes > 0, "no record was found on disk")
	must(e.Storage.RecordBytes < e.Image.LayerBytes/2, "the record has %d bytes", e.Storage.RecordBytes)
	must(e.Storage.LayersAdded == 0, "%d layers were added to CRI-O's storage", e.Storage.LayersAdded)
	must(e.Storage.HostFilesWithSecret == 0, "%d files on the host hold the secret", e.Storage.HostFilesWithSecret)
	if e.marker == "" {
		wrong = append(wrong, errors.New("there is no marker to search for"))
	}
	return wrong
}
