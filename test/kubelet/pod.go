package main

import (
	"maps"
	"os"
	"path/filepath"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The labels of kubelet (pkg/kubelet/types/labels.go).
const (
	labelPodName       = "io.kubernetes.pod.name"
	labelPodNamespace  = "io.kubernetes.pod.namespace"
	labelPodUID        = "io.kubernetes.pod.uid"
	labelContainerName = "io.kubernetes.container.name"
)

const (
	// cpuShares and cpuPeriod are those of a container that asks for nothing
	// (pkg/kubelet/cm/helpers_linux.go).
	cpuShares, cpuPeriod = 2, 100000
	// gracePeriod is terminationGracePeriodSeconds.
	gracePeriod = 10
)

// pod is a v1.Pod as far as the CRI sees of it, and what the kubelet knows of it.
type pod struct {
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace"`
	UID         string            `json:"uid"`
	Handler     string            `json:"handler"` // of its runtime class; "" is none
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	// RunAsUser and RunAsNonRoot are the pod's securityContext.
	RunAsUser    *int64      `json:"runAsUser,omitempty"`
	RunAsNonRoot bool        `json:"runAsNonRoot,omitempty"`
	Policy       string      `json:"policy"` // imagePullPolicy: Always, IfNotPresent or Never
	Secrets      []secret    `json:"secrets,omitempty"`
	Containers   []container `json:"containers"`

	Sandbox string             `json:"sandbox,omitempty"` // ID of its sandbox
	BackOff map[string]backOff `json:"backOff,omitempty"` // of pulls that failed, by image
}

// container is a v1.Container and its present instance.
type container struct {
	Name    string   `json:"name"`
	Image   string   `json:"image"`
	Command []string `json:"command,omitempty"`

	ID       string   `json:"id,omitempty"`       // "" when there is none
	Dead     []string `json:"dead,omitempty"`     // earlier instances
	Restarts uint32   `json:"restarts,omitempty"` // attempt of the next instance, less one
}

// node is what a kubelet knows of its machine.
type node struct {
	Root         string // podLogsDir and the pods' own files lie below
	CgroupParent string
	DNS          string
	// Gate is the feature gate RuntimeClassInImageCriApi.
	Gate bool
	// After is how much later it is than the clock says: a test need not wait for a
	// back-off to end.
	After time.Duration
}

func (n node) now() time.Time { return time.Now().Add(n.After) }

func (n node) podDir(p *pod) string { return filepath.Join(n.Root, "pods", p.UID) }

// logDir is BuildPodLogsDirectory (kuberuntime/helpers.go).
func (n node) logDir(p *pod) string {
	return filepath.Join(n.Root, "logs", p.Namespace+"_"+p.Name+"_"+p.UID)
}

// admit gives a pod what it has when a kubelet sees it: every pod of the API server
// has these annotations (pkg/kubelet/config/common.go), and kubelet makes its folders.
func (n node) admit(p *pod, now time.Time) error {
	all := map[string]string{"kubernetes.io/config.seen": now.Format(time.RFC3339Nano), "kubernetes.io/config.source": "api"}
	maps.Copy(all, p.Annotations)
	p.Annotations = all
	dirs := []string{n.podDir(p)}
	for _, c := range p.Containers {
		dirs = append(dirs, filepath.Join(n.logDir(p), c.Name), filepath.Join(n.podDir(p), "containers", c.Name))
	}
	for _, d := range dirs {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	hosts := "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"
	return os.WriteFile(filepath.Join(n.podDir(p), "etc-hosts"), []byte(hosts), 0o644)
}

// sandboxConfig is generatePodSandboxConfig (kuberuntime/kuberuntime_sandbox.go) for a
// pod with the API server's defaults and no resources. The same pod gives the same bytes.
func (n node) sandboxConfig(p *pod) *cri.PodSandboxConfig {
	labels := map[string]string{labelPodName: p.Name, labelPodNamespace: p.Namespace, labelPodUID: p.UID}
	for k, v := range p.Labels {
		if _, taken := labels[k]; !taken { // newPodLabels: kubelet's own stand
			labels[k] = v
		}
	}
	security := &cri.LinuxSandboxSecurityContext{
		NamespaceOptions: namespaces(),
		Seccomp:          &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
	}
	if p.RunAsUser != nil {
		security.RunAsUser = &cri.Int64Value{Value: *p.RunAsUser}
	}
	return &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: p.Name, Namespace: p.Namespace, Uid: p.UID},
		Hostname:     p.Name,
		LogDirectory: n.logDir(p),
		DnsConfig:    &cri.DNSConfig{Servers: []string{n.DNS}},
		Labels:       labels,
		Annotations:  p.Annotations,
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent:    n.CgroupParent,
			SecurityContext: security,
			Resources:       &cri.LinuxContainerResources{CpuShares: cpuShares, CpuPeriod: cpuPeriod},
			Overhead:        &cri.LinuxContainerResources{},
		},
	}
}

// namespaces is NamespacesForPod (kuberuntime/util/util.go): IPC and network of the
// pod, each container with its own processes.
func namespaces() *cri.NamespaceOption {
	return &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}
}
