package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/google/uuid"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/internal/testkit/images"
	"github.com/husk-cri/husk/test/internal/rig"
)

// layerPadding makes the layers outweigh what the host may read.
const layerPadding = 2 << 20

// collect does the main job once and gathers the evidence.
func collect(ctx context.Context, r *rig.Rig, kind string, out *printer) (*Evidence, error) {
	e := &Evidence{kind: kind, wantUser: "web", wantOutput: "hello from uid 1234", marker: "husk-demo-secret-" + uuid.NewString()}
	out.step("building an " + kind + " image whose user is a name, and pushing it")
	if err := e.push(ctx, r); err != nil {
		return nil, err
	}
	out.step("asking stock CRI-O to pull it")
	if err := e.baseline(ctx, r); err != nil {
		return nil, err
	}
	out.step("starting husk in front of CRI-O, and the image in a pod of the handler husk")
	if err := r.StartHusk(ctx); err != nil {
		return nil, err
	}
	since, err := r.LogEnd(ctx)
	if err != nil {
		return nil, err
	}
	pod, id, err := e.runContainer(ctx, r)
	if err != nil {
		return nil, err
	}
	out.step("reading the registry's access log, CRI-O's answers and the disk")
	if err := e.observe(ctx, r, pod, id); err != nil {
		return nil, err
	}
	log, err := r.Requests(ctx, since)
	if err != nil {
		return nil, err
	}
	e.requests(log, r.Node.Network.IP)
	if err := e.searchHost(r); err != nil {
		return nil, err
	}
	if _, err := r.Crictl(ctx, "stopp", pod.ID); err != nil {
		return nil, err
	}
	_, err = r.Crictl(ctx, "rmp", pod.ID)
	return e, err
}

func (e *Evidence) push(ctx context.Context, r *rig.Rig) error {
	spec := images.Spec{
		Busybox: images.DefaultBusybox,
		Passwd:  "root:x:0:0:root:/root:/bin/sh\nweb:x:1234:1235:web:/home/web:/bin/sh\n",
		Group:   "root:x:0:\nweb:x:1235:\n",
		Layers: []images.Layer{
			{Files: []images.File{{Path: "/secret", Content: []byte(e.marker)}}},
			{Random: layerPadding},
		},
		Config: imgspec.ImageConfig{User: "web", Cmd: []string{"/bin/sh", "-c", `echo "hello from uid $(id -u)"; trap "exit 0" TERM; while :; do sleep 1; done`}},
	}
	if e.kind == "index" {
		spec.Platforms = []imgspec.Platform{{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "arm64"}}
	}
	if e.kind != "plain" {
		key, err := os.ReadFile(r.PublicKey())
		if err != nil {
			return err
		}
		spec.Encrypt = &images.Encryption{PublicKeys: [][]byte{key}}
	}
	ref, summary, err := r.Push(ctx, "demo/"+e.kind, spec)
	if err != nil {
		return err
	}
	at := 0
	if len(summary.Instances) > 1 {
		at = slices.IndexFunc(summary.Instances, func(i images.Instance) bool { return i.Platform == "linux/"+runtime.GOARCH })
	}
	if at < 0 {
		return fmt.Errorf("the index has no instance for linux/%s", runtime.GOARCH)
	}
	instance := summary.Instances[at]
	e.instance = instance.Manifest.String()
	e.Image = ImageEvidence{
		Ref: ref, ManifestDigest: summary.Digest.String(), ImageID: instance.Config.Encoded(),
		Layers: len(instance.Layers), EncryptedLayers: instance.Encrypted, LayerBytes: instance.Bytes,
	}
	// A layer of any platform counts: the host has no business with one of them.
	for _, i := range summary.Instances {
		for _, l := range i.Layers {
			e.layerDigests = append(e.layerDigests, l.Digest.String())
		}
	}
	return nil
}

// baseline asks stock CRI-O for the image, and removes it again if it got it.
func (e *Evidence) baseline(ctx context.Context, r *rig.Rig) error {
	if _, err := r.StockCrictl(ctx, "pull", e.Image.Ref); err != nil {
		var refused *rig.ToolError
		if !errors.As(err, &refused) {
			return err
		}
		e.BaselineError = refused.Stderr
		return nil
	}
	_, err := r.StockCrictl(ctx, "rmi", e.Image.Ref)
	return err
}

// runContainer does what kubelet does. CRI-O's layers are counted around the pull:
// the writable layers of the sandbox and the container are not the image's.
func (e *Evidence) runContainer(ctx context.Context, r *rig.Rig) (pod rig.Pod, id string, err error) {
	if pod, err = r.RunPod(ctx, "demo", "husk"); err != nil {
		return pod, "", err
	}
	before, err := countLayers(r.Node.CRIO.Root)
	if err != nil {
		return pod, "", err
	}
	if _, err = r.Crictl(ctx, "pull", "--pod-config", pod.Config, e.Image.Ref); err != nil {
		return pod, "", err
	}
	after, err := countLayers(r.Node.CRIO.Root)
	if err != nil {
		return pod, "", err
	}
	e.Storage.LayersAdded = after - before
	id, err = r.Create(ctx, pod, rig.Container{Name: "web", Image: e.Image.Ref, Asked: e.Image.Ref})
	if err != nil {
		return pod, "", err
	}
	_, err = r.Crictl(ctx, "start", id)
	return pod, id, err
}

// observe reads the container's status, its user and its output.
func (e *Evidence) observe(ctx context.Context, r *rig.Rig, pod rig.Pod, id string) error {
	var sandbox struct {
		Status struct {
			Network struct {
				IP string `json:"ip"`
			} `json:"network"`
		} `json:"status"`
	}
	if err := r.Inspect(ctx, &sandbox, "inspectp", pod.ID); err != nil {
		return err
	}
	e.Sandbox.PodIP = sandbox.Status.Network.IP
	var container struct {
		Status struct {
			State    string `json:"state"`
			ImageRef string `json:"imageRef"`
			ImageID  string `json:"imageId"`
		} `json:"status"`
	}
	if err := r.Inspect(ctx, &container, "inspect", id); err != nil {
		return err
	}
	e.Container = ContainerEvidence{State: container.Status.State, ImageRef: container.Status.ImageRef, ImageID: container.Status.ImageID}
	var err error
	if e.Container.User, err = r.Crictl(ctx, "exec", "-s", id, "id", "-un"); err != nil {
		return err
	}
	secret, err := r.Crictl(ctx, "exec", "-s", id, "cat", "/secret")
	if err != nil {
		return err
	}
	e.markerInPod = secret == e.marker
	for range 50 { // the first line may still be on its way
		if e.Container.Output, err = r.Crictl(ctx, "logs", id); err != nil || e.Container.Output != "" {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
	return nil
}

// searchHost looks at the disk from the host's mount namespace, while the container runs.
func (e *Evidence) searchHost(r *rig.Rig) error {
	var err error
	if e.Storage.RecordBytes, err = recordBytes(r.Node.CRIO.Root, e.instance); err != nil {
		return err
	}
	for _, dir := range []string{filepath.Dir(r.Dir), "/run/husk", "/var/lib/husk", "/var/tmp", "/dev/shm"} {
		// The registry's own data and the image's source are the tenant's side of the wire.
		skip := []string{filepath.Join(r.Dir, "registry"), filepath.Join(filepath.Dir(r.Dir), "images")}
		n, err := filesWith(dir, skip, e.marker)
		if err != nil {
			return err
		}
		e.Storage.HostFilesWithSecret += n
	}
	return nil
}
