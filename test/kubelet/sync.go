package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// kubelet is one worker of a kubelet 1.34: it makes the calls that the real one makes
// for one pod, in its order and with its fields.
type kubelet struct {
	cri  *client
	node node
	// pulled is the memory of the gate KubeletEnsureSecretPulledImages; nil: it is off.
	pulled *recordFile
}

// synced is what came of a pod.
type synced struct {
	Sandbox    string            `json:"sandbox"`
	Containers []containerSynced `json:"containers"`
	Pulls      int               `json:"pulls"` // calls of PullImage
	Calls      []call            `json:"calls"`
}

// containerSynced is what came of a container.
type containerSynced struct {
	Name     string          `json:"name"`
	ID       string          `json:"id,omitempty"`
	ImageRef string          `json:"imageRef,omitempty"` // what kubelet sent as its image
	Reason   string          `json:"reason,omitempty"`   // why it does not run
	Message  string          `json:"message,omitempty"`
	Status   json.RawMessage `json:"status,omitempty"` // its cri.ContainerStatus
	Output   string          `json:"output,omitempty"` // the first line it wrote
}

// syncPod starts a pod: SyncPod (kuberuntime/kuberuntime_manager.go).
func (k *kubelet) syncPod(ctx context.Context, p *pod) (synced, error) {
	config := k.node.sandboxConfig(p)
	answer, err := k.cri.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: p.Handler})
	if err != nil {
		return synced{}, fmt.Errorf("CreatePodSandboxError: %w", err)
	}
	p.Sandbox = answer.GetPodSandboxId()
	if _, err := k.cri.runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.Sandbox}); err != nil {
		return synced{}, err
	}
	return k.startContainers(ctx, p)
}

// startContainers starts the containers that do not run.
func (k *kubelet) startContainers(ctx context.Context, p *pod) (synced, error) {
	result := synced{Sandbox: p.Sandbox, Containers: []containerSynced{}}
	for i := range p.Containers {
		c := &p.Containers[i]
		if c.ID != "" {
			continue
		}
		one, err := k.startContainer(ctx, p, c)
		if err == nil {
			err = k.observe(ctx, p, c, &one)
		}
		var why *reasoned
		switch {
		case errors.As(err, &why):
			one.Reason, one.Message = why.reason.Error(), why.message
		case err != nil:
			return result, fmt.Errorf("container %s: %w", c.Name, err)
		}
		result.Containers = append(result.Containers, one)
	}
	result.Pulls, result.Calls = k.cri.pulls(), k.cri.calls
	return result, nil
}

// startContainer is startContainer (kuberuntime/kuberuntime_container.go).
func (k *kubelet) startContainer(ctx context.Context, p *pod, c *container) (containerSynced, error) {
	one := containerSynced{Name: c.Name}
	sandbox := k.node.sandboxConfig(p)
	ref, err := k.ensureImageExists(ctx, p, c.Image, sandbox)
	if err != nil {
		return one, err
	}
	one.ImageRef = ref
	config, err := k.containerConfig(ctx, p, c, ref)
	if err != nil {
		return one, because(errCreateContainerConfig, err)
	}
	made, err := k.cri.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.Sandbox, Config: config, SandboxConfig: sandbox})
	if err != nil {
		return one, because(errCreateContainer, err)
	}
	c.ID, one.ID = made.GetContainerId(), made.GetContainerId()
	if _, err := k.cri.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: c.ID}); err != nil {
		return one, because(errRunContainer, err)
	}
	return one, nil
}

// observe waits for the container's first line and reads its status as PLEG does
// (getPodContainerStatuses, kuberuntime/kuberuntime_container.go).
func (k *kubelet) observe(ctx context.Context, p *pod, c *container, one *containerSynced) error {
	var err error
	if one.Output, err = k.node.firstLine(ctx, p, c); err != nil {
		return err
	}
	listed, err := k.cri.listPodContainers(ctx, p.UID)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(listed, func(l *cri.Container) bool { return l.GetId() == c.ID }) {
		return fmt.Errorf("%s is not among the containers of its pod", c.ID)
	}
	answer, err := k.cri.runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.ID})
	if err != nil {
		return err
	}
	one.Status, err = printed(answer.GetStatus())
	return err
}

// outputTimeout bounds how long a container may be silent, outputPoll how late its
// line is seen.
const (
	outputTimeout = 15 * time.Second
	outputPoll    = 20 * time.Millisecond
)

// firstLine waits until a container has written a line, and returns it.
func (n node) firstLine(ctx context.Context, p *pod, c *container) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, outputTimeout)
	defer cancel()
	path := filepath.Join(n.logDir(p), c.Name, fmt.Sprintf("%d.log", c.Restarts))
	for {
		data, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
		if line, _, whole := bytes.Cut(data, []byte("\n")); whole {
			fields := strings.SplitN(string(line), " ", 4) // time, stream, F or P, text
			return fields[len(fields)-1], nil
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("%s writes nothing: %w", path, ctx.Err())
		case <-time.After(outputPoll):
		}
	}
}

// restart is what kubelet does to a container whose liveness probe fails: it kills it
// and, with the next sync, starts it again in the same sandbox.
func (k *kubelet) restart(ctx context.Context, p *pod) (synced, error) {
	for i := range p.Containers {
		c := &p.Containers[i]
		if c.ID == "" {
			continue
		}
		if err := k.kill(ctx, c.ID); err != nil {
			return synced{}, err
		}
		c.Dead, c.ID = append(c.Dead, c.ID), ""
		c.Restarts++
	}
	return k.startContainers(ctx, p)
}

// kill is killContainer; what is gone already is no error.
func (k *kubelet) kill(ctx context.Context, id string) error {
	_, err := k.cri.runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id, Timeout: gracePeriod})
	if err != nil && status.Code(err) != codes.NotFound {
		return err
	}
	return nil
}

// remove deletes a pod: killPod, then what the garbage collectors do to its containers
// and, later, to its sandbox (kuberuntime/kuberuntime_gc.go), which is stopped again.
func (k *kubelet) remove(ctx context.Context, p *pod) (synced, error) {
	var all []string
	for _, c := range p.Containers {
		if c.ID != "" {
			if err := k.kill(ctx, c.ID); err != nil {
				return synced{}, err
			}
			all = append(all, c.ID)
		}
		all = append(all, c.Dead...)
	}
	if _, err := k.cri.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.Sandbox}); err != nil {
		return synced{}, err
	}
	for _, id := range all {
		if _, err := k.cri.runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id}); err != nil { // removeContainerLog
			return synced{}, err
		}
		if _, err := k.cri.runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: id}); err != nil {
			return synced{}, err
		}
	}
	if _, err := k.cri.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.Sandbox}); err != nil {
		return synced{}, err
	}
	if _, err := k.cri.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.Sandbox}); err != nil {
		return synced{}, err
	}
	return synced{Sandbox: p.Sandbox, Containers: []containerSynced{}, Calls: k.cri.calls}, nil
}
