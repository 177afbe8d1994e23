package main

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"strconv"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// bestEffortOOMScoreAdj is pkg/kubelet/qos/policy.go's.
const bestEffortOOMScoreAdj = 1000

// terminationMessagePath is the API server's default.
const terminationMessagePath = "/dev/termination-log"

// user is whom kubelet lets a container run as: a uid, or a name while uid is nil.
type user struct {
	uid  *int64
	name string
}

// imageUser is getImageUser (kuberuntime/helpers.go). The question has no annotations
// and no handler, and no image means root.
func (k *kubelet) imageUser(ctx context.Context, image string) (user, error) {
	found, err := k.cri.imageStatus(ctx, &cri.ImageSpec{Image: image})
	if err != nil {
		return user{}, err
	}
	if found.GetUid() != nil {
		return user{uid: &found.GetUid().Value}, nil
	}
	if found.GetUsername() != "" {
		return user{name: found.GetUsername()}, nil
	}
	return user{uid: new(int64)}, nil
}

// verifyRunAsNonRoot is kuberuntime/security_context_others.go.
func verifyRunAsNonRoot(p *pod, image user) error {
	switch {
	case !p.RunAsNonRoot:
		return nil
	case p.RunAsUser != nil:
		if *p.RunAsUser == 0 {
			return errors.New("container's runAsUser breaks non-root policy")
		}
		return nil
	case image.uid == nil && image.name != "":
		return fmt.Errorf("container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root", image.name)
	case image.uid != nil && *image.uid == 0:
		return errors.New("container has runAsNonRoot and image will run as root")
	}
	return nil
}

// containerConfig is generateContainerConfig (kuberuntime/kuberuntime_container.go).
func (k *kubelet) containerConfig(ctx context.Context, p *pod, c *container, imageRef string) (*cri.ContainerConfig, error) {
	who, err := k.imageUser(ctx, c.Image)
	if err != nil {
		return nil, err
	}
	if err := verifyRunAsNonRoot(p, who); err != nil {
		return nil, err
	}
	mounts, err := k.node.mounts(p, c)
	if err != nil {
		return nil, err
	}
	return &cri.ContainerConfig{
		Metadata:    &cri.ContainerMetadata{Name: c.Name, Attempt: c.Restarts},
		Image:       &cri.ImageSpec{Image: imageRef, UserSpecifiedImage: c.Image},
		Command:     c.Command,
		Labels:      map[string]string{labelPodName: p.Name, labelPodNamespace: p.Namespace, labelPodUID: p.UID, labelContainerName: c.Name},
		Annotations: containerAnnotations(c),
		Envs:        serviceEnv(),
		Mounts:      mounts,
		LogPath:     filepath.Join(c.Name, strconv.Itoa(int(c.Restarts))+".log"),
		Linux: &cri.LinuxContainerConfig{
			// kubelet also sends HugepageLimits of 0. The controller is missing on the
			// machines these tests run on, and with them no container starts at all.
			Resources:       &cri.LinuxContainerResources{CpuShares: cpuShares, CpuPeriod: cpuPeriod, OomScoreAdj: bestEffortOOMScoreAdj},
			SecurityContext: securityContext(p, who),
		},
	}, nil
}

// securityContext is determineEffectiveSecurityContext (kuberuntime/security_context.go).
func securityContext(p *pod, image user) *cri.LinuxContainerSecurityContext {
	s := &cri.LinuxContainerSecurityContext{
		NamespaceOptions: namespaces(),
		Seccomp:          &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined},
		// pkg/securitycontext/util.go
		MaskedPaths: []string{
			"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
			"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
		},
		ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
	}
	switch {
	case p.RunAsUser != nil:
		s.RunAsUser = &cri.Int64Value{Value: *p.RunAsUser}
	case image.uid != nil:
		s.RunAsUser = &cri.Int64Value{Value: *image.uid}
	default:
		s.RunAsUsername = image.name
	}
	return s
}

// containerAnnotations is newContainerAnnotations (kuberuntime/labels.go).
func containerAnnotations(c *container) map[string]string {
	h := fnv.New32a()
	_, _ = fmt.Fprint(h, c.Name, c.Image, c.Command)
	return map[string]string{
		"io.kubernetes.container.hash":                     strconv.FormatUint(uint64(h.Sum32()), 16),
		"io.kubernetes.container.restartCount":             strconv.Itoa(int(c.Restarts)),
		"io.kubernetes.container.terminationMessagePath":   terminationMessagePath,
		"io.kubernetes.container.terminationMessagePolicy": "File",
		"io.kubernetes.pod.terminationGracePeriod":         strconv.Itoa(gracePeriod),
	}
}

// serviceEnv is what every pod has of the service "kubernetes" (pkg/kubelet/envvars).
func serviceEnv() []*cri.KeyValue {
	var env []*cri.KeyValue
	for _, kv := range [][2]string{
		{"KUBERNETES_SERVICE_HOST", "10.96.0.1"}, {"KUBERNETES_SERVICE_PORT", "443"}, {"KUBERNETES_SERVICE_PORT_HTTPS", "443"},
		{"KUBERNETES_PORT", "tcp://10.96.0.1:443"},
	} {
		env = append(env, &cri.KeyValue{Key: kv[0], Value: []byte(kv[1])})
	}
	return env
}

// mounts is makeMounts for a pod without volumes: its hosts file, and the file for the
// termination message. kubelet's name for that is random; here it says the attempt.
func (n node) mounts(p *pod, c *container) ([]*cri.Mount, error) {
	message := filepath.Join(n.podDir(p), "containers", c.Name, fmt.Sprintf("%08x", c.Restarts))
	if err := os.WriteFile(message, nil, 0o600); err != nil {
		return nil, err
	}
	if err := os.Chmod(message, 0o666); err != nil { // whatever the umask
		return nil, err
	}
	return []*cri.Mount{
		{ContainerPath: "/etc/hosts", HostPath: filepath.Join(n.podDir(p), "etc-hosts")},
		{ContainerPath: terminationMessagePath, HostPath: message},
	}, nil
}
