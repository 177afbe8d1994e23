package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/test/internal/rig"
)

// outputPoll is how exactly a container's first line is timed, outputTimeout how long
// it is waited for.
const (
	outputPoll    = time.Millisecond
	outputTimeout = 30 * time.Second
)

// podStarter starts pods as kubelet does, over one socket and for one handler.
type podStarter struct {
	rig     *rig.Rig
	cri     *client
	handler string
	pods    int
}

func newPodStarter(r *rig.Rig, socket, handler string) (*podStarter, error) {
	c, err := dial(socket)
	if err != nil {
		return nil, err
	}
	return &podStarter{rig: r, cri: c, handler: handler}, nil
}

// round is the life of one pod whose image is not on the node: its first container is
// the cold start, a second one the warm one. Afterwards the image is gone again.
func (s *podStarter) round(ctx context.Context, image string, cold, warm *PodStartRun) (err error) {
	s.pods++
	config := s.sandbox(fmt.Sprintf("bench-start-%s-%d", s.handler, s.pods))
	if err := os.MkdirAll(config.LogDirectory, 0o755); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.cri.remove(context.WithoutCancel(ctx), image, s.handler)) }()
	watch := cold.start()
	made, err := s.cri.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: s.handler})
	if err != nil {
		return err
	}
	watch.lap("sandbox")
	defer func() { err = errors.Join(err, s.end(context.WithoutCancel(ctx), made.GetPodSandboxId())) }()
	if err := s.container(ctx, made.GetPodSandboxId(), config, "cold", image, watch); err != nil {
		return err
	}
	return s.container(ctx, made.GetPodSandboxId(), config, "warm", image, warm.start())
}

// sandbox is a pod's configuration. Its pid namespace is CONTAINER, kubelet's default.
func (s *podStarter) sandbox(name string) *cri.PodSandboxConfig {
	return &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Uid: name + "-uid", Namespace: "bench"},
		LogDirectory: filepath.Join(s.rig.Dir, "log", "pods", name),
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent:    s.rig.Node.CgroupParent,
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}},
		},
	}
}

// container pulls the image, whatever is there, and starts a container from it. It
// returns when the container has written its line.
func (s *podStarter) container(ctx context.Context, pod string, sandbox *cri.PodSandboxConfig, name, image string, watch *stopwatch) error {
	pulled, err := s.cri.images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: image}, SandboxConfig: sandbox})
	if err != nil {
		return err
	}
	watch.lap("pull")
	config := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name},
		Image:    &cri.ImageSpec{Image: pulled.GetImageRef(), UserSpecifiedImage: image},
		Command:  []string{"/bin/sh", "-c", "echo ready; exec sleep 1000"},
		LogPath:  name + ".log",
		Linux: &cri.LinuxContainerConfig{
			SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}},
		},
	}
	made, err := s.cri.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: pod, Config: config, SandboxConfig: sandbox})
	if err != nil {
		return err
	}
	watch.lap("create")
	if _, err := s.cri.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: made.GetContainerId()}); err != nil {
		return err
	}
	watch.lap("start")
	if err := firstOutput(ctx, filepath.Join(sandbox.LogDirectory, config.LogPath)); err != nil {
		return err
	}
	watch.lap("output")
	watch.stop()
	_, err = s.cri.runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: made.GetContainerId()}) // at once
	return err
}

// firstOutput waits until something stands in a container's log.
func firstOutput(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, outputTimeout)
	defer cancel()
	tick := time.NewTicker(outputPoll)
	defer tick.Stop()
	for {
		info, err := os.Stat(path)
		if err == nil && info.Size() > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s stays empty: %w", path, ctx.Err())
		case <-tick.C:
		}
	}
}

// end removes a pod with its containers.
func (s *podStarter) end(ctx context.Context, pod string) error {
	if _, err := s.cri.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
		return err
	}
	_, err := s.cri.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod})
	return err
}
