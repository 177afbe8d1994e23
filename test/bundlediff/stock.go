package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/test/internal/rig"
)

// hostname is that of the pod.
const hostname = "bundlediff"

// node is stock CRI-O with a pod of the handler runc.
type node struct {
	rig     *rig.Rig
	conn    *grpc.ClientConn
	images  cri.ImageServiceClient
	runtime cri.RuntimeServiceClient
	pod     *cri.PodSandboxConfig
	podID   string
}

func dial(r *rig.Rig) (*node, error) {
	conn, err := grpc.NewClient("unix://"+r.Node.CRIO.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("dial crio: %w", err)
	}
	return &node{rig: r, conn: conn, images: cri.NewImageServiceClient(conn), runtime: cri.NewRuntimeServiceClient(conn)}, nil
}

func (n *node) close() error { return n.conn.Close() }

func (n *node) runPod(ctx context.Context) error {
	logs := filepath.Join(n.rig.Dir, "log", "pods", hostname)
	if err := os.MkdirAll(logs, 0o700); err != nil {
		return err
	}
	n.pod = &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: hostname, Uid: hostname + "-uid", Namespace: "default"},
		Hostname:     hostname,
		LogDirectory: logs,
		// Nothing listens there, so that a look-up fails at once.
		DnsConfig: &cri.DNSConfig{Servers: []string{n.rig.Node.Network.IP}},
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent:    n.rig.Node.CgroupParent,
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: ownPID()},
		},
	}
	made, err := n.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: n.pod, RuntimeHandler: "runc"}, grpc.WaitForReady(true))
	n.podID = made.GetPodSandboxId()
	return err
}

// ownPID is kubelet's default; other modes need an infra container, and that a capability.
func ownPID() *cri.NamespaceOption { return &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER} }

func (n *node) removePod(ctx context.Context) error {
	_, err := n.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: n.podID})
	_, err2 := n.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: n.podID})
	return errors.Join(err, err2)
}

// given is what there is for a container, where CRI-O puts it with the manager cgroupfs.
func (n *node) given(id string) given {
	return given{
		cgroup: filepath.Join(n.rig.Node.CgroupParent, "crio-"+id),
		pod:    filepath.Join(n.rig.Node.CRIO.RunRoot, "overlay-containers", n.podID, "userdata"),
	}
}

// create pulls the image in full, makes the container, reads what CRI-O made, and removes
// it. The ID is "" for a container that is refused.
func (n *node) create(ctx context.Context, image pushed, c combination) (s side, id string, err error) {
	pulled, err := n.images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: image.ref}, SandboxConfig: n.pod})
	if err != nil {
		return side{}, "", fmt.Errorf("pull: %w", err)
	}
	config := c.config()
	config.Image = &cri.ImageSpec{Image: pulled.GetImageRef(), UserSpecifiedImage: image.ref}
	made, err := n.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: n.podID, Config: config, SandboxConfig: n.pod})
	if err != nil {
		return side{refused: status.Convert(err).Message()}, "", nil
	}
	id = made.GetContainerId()
	defer func() {
		// At once: what waits to be started ignores most stop signals.
		_, e := n.runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id})
		err = errors.Join(err, e)
		_, e = n.runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: id})
		err = errors.Join(err, e)
	}()
	// The container directory; the run directory's is a copy of it.
	data, err := os.ReadFile(filepath.Join(n.rig.Node.CRIO.Root, "overlay-containers", id, "userdata", "config.json"))
	if err != nil {
		return side{}, "", err
	}
	s, err = sideOf(data, c)
	return s, id, err
}
