package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	. "github.com/onsi/gomega"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// runtime is a small CRI runtime in memory. Its containers write a line at once.
type runtime struct {
	cri.UnimplementedRuntimeServiceServer
	cri.UnimplementedImageServiceServer

	mu         sync.Mutex
	remote     map[string]*cri.Image // what a registry has, by reference
	password   string                // that the registry wants; "" is none
	local      map[string]*cri.Image
	containers map[string]*cri.CreateContainerRequest
	pulls      []*cri.PullImageRequest
	asked      []*cri.ImageSpec // by ImageStatus
	removed    []*cri.ImageSpec
}

// serve starts the runtime and returns a kubelet that talks to it.
func serve(t *testing.T, r *runtime) *kubelet {
	t.Helper()
	g := NewWithT(t)
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	listener, err := new(net.ListenConfig).Listen(t.Context(), "unix", socket)
	g.Expect(err).NotTo(HaveOccurred())
	server := grpc.NewServer()
	cri.RegisterRuntimeServiceServer(server, r)
	cri.RegisterImageServiceServer(server, r)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	c, err := dial(socket)
	g.Expect(err).NotTo(HaveOccurred())
	t.Cleanup(func() { _ = c.conn.Close() })
	r.local, r.containers = map[string]*cri.Image{}, map[string]*cri.CreateContainerRequest{}
	return &kubelet{cri: c, node: node{Root: dir, CgroupParent: "/p", DNS: "10.0.0.1"}}
}

func (r *runtime) RunPodSandbox(context.Context, *cri.RunPodSandboxRequest) (*cri.RunPodSandboxResponse, error) {
	return &cri.RunPodSandboxResponse{PodSandboxId: "sandbox"}, nil
}

func (r *runtime) PodSandboxStatus(context.Context, *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	return new(cri.PodSandboxStatusResponse), nil
}

func (r *runtime) ListPodSandbox(context.Context, *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	return new(cri.ListPodSandboxResponse), nil
}

func (r *runtime) StopPodSandbox(context.Context, *cri.StopPodSandboxRequest) (*cri.StopPodSandboxResponse, error) {
	return new(cri.StopPodSandboxResponse), nil
}

func (r *runtime) RemovePodSandbox(context.Context, *cri.RemovePodSandboxRequest) (*cri.RemovePodSandboxResponse, error) {
	return new(cri.RemovePodSandboxResponse), nil
}

func (r *runtime) ImageStatus(_ context.Context, req *cri.ImageStatusRequest) (*cri.ImageStatusResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, req.Image)
	return &cri.ImageStatusResponse{Image: r.local[req.Image.Image]}, nil
}

func (r *runtime) PullImage(_ context.Context, req *cri.PullImageRequest) (*cri.PullImageResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pulls = append(r.pulls, req)
	image := r.remote[req.Image.Image]
	switch {
	case image == nil:
		return nil, status.Error(codes.Unknown, "RegistryUnavailable: nobody answers")
	case req.GetAuth().GetPassword() != r.password:
		return nil, status.Error(codes.Unauthenticated, "wrong")
	}
	r.local[req.Image.Image] = image
	return &cri.PullImageResponse{ImageRef: image.Id}, nil
}

func (r *runtime) ListImages(context.Context, *cri.ListImagesRequest) (*cri.ListImagesResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := new(cri.ListImagesResponse)
	for _, i := range r.local {
		list.Images = append(list.Images, i)
	}
	return list, nil
}

func (r *runtime) RemoveImage(_ context.Context, req *cri.RemoveImageRequest) (*cri.RemoveImageResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.removed = append(r.removed, req.Image)
	return new(cri.RemoveImageResponse), nil
}

func (r *runtime) CreateContainer(_ context.Context, req *cri.CreateContainerRequest) (*cri.CreateContainerResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	id := fmt.Sprintf("container-%d", len(r.containers))
	r.containers[id] = req
	return &cri.CreateContainerResponse{ContainerId: id}, nil
}

func (r *runtime) StartContainer(_ context.Context, req *cri.StartContainerRequest) (*cri.StartContainerResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.containers[req.ContainerId]
	log := filepath.Join(c.SandboxConfig.LogDirectory, c.Config.LogPath)
	return new(cri.StartContainerResponse), os.WriteFile(log, []byte("2026-01-01T00:00:00Z stdout F it runs\n"), 0o600)
}

func (r *runtime) StopContainer(context.Context, *cri.StopContainerRequest) (*cri.StopContainerResponse, error) {
	return nil, status.Error(codes.NotFound, "gone")
}

func (r *runtime) RemoveContainer(_ context.Context, req *cri.RemoveContainerRequest) (*cri.RemoveContainerResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.containers, req.ContainerId)
	return new(cri.RemoveContainerResponse), nil
}

func (r *runtime) ListContainers(context.Context, *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := new(cri.ListContainersResponse)
	for id, c := range r.containers {
		list.Containers = append(list.Containers, &cri.Container{Id: id, Image: new(cri.ImageSpec), ImageId: c.Config.Image.Image})
	}
	return list, nil
}

func (r *runtime) ContainerStatus(_ context.Context, req *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	return &cri.ContainerStatusResponse{Status: &cri.ContainerStatus{Id: req.ContainerId, State: cri.ContainerState_CONTAINER_RUNNING}}, nil
}

// methods are the calls that were made.
func (k *kubelet) methods() []string {
	var names []string
	for _, c := range k.cri.calls {
		names = append(names, c.Method)
	}
	return names
}

// last returns the last container that was made.
func (r *runtime) last() *cri.CreateContainerRequest {
	r.mu.Lock()
	defer r.mu.Unlock()
	var ids []string
	for id := range r.containers {
		ids = append(ids, id)
	}
	return r.containers[slices.Max(ids)]
}
