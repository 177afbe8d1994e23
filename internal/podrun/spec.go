package podrun

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/cgroups/v3"
	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/husk-cri/husk/bundlegen"
	"github.com/husk-cri/husk/bundlegen/bundles"
	"github.com/husk-cri/husk/internal/podrun/pause"
	"github.com/husk-cri/husk/internal/sandbox"
	"github.com/husk-cri/husk/pkg/annotations"
	"github.com/husk-cri/husk/pkg/katavolume"
)

// The annotations of CRI-O that runtimes read, beyond those of package annotations.
const (
	crioMetadata      = "io.kubernetes.cri-o.Metadata"
	crioSandboxName   = "io.kubernetes.cri-o.SandboxName"
	crioContainerName = "io.kubernetes.cri-o.ContainerName"
	crioContainerID   = "io.kubernetes.cri-o.ContainerID"
	crioKubeName      = "io.kubernetes.cri-o.KubeName"
	crioNamespace     = "io.kubernetes.cri-o.Namespace"
	crioHostNetwork   = "io.kubernetes.cri-o.HostNetwork"
	crioCgroupParent  = "io.kubernetes.cri-o.CgroupParent"
	crioCreated       = "io.kubernetes.cri-o.Created"
	crioTTY           = "io.kubernetes.cri-o.TTY"
	crioStdin         = "io.kubernetes.cri-o.Stdin"

	typeContainer = "container"
	// pauseImage is what is said of a pod's own container, which has none: the binary is
	// husk's own. A runtime that pulls images takes its own pause there.
	pauseImage = "husk.dev/pause"
	// podNamespace is what Kubernetes would call the namespace.
	podNamespace = "default"
)

// fileMounts are the files of a pod that its containers see, its resolv.conf first.
func fileMounts(dir string) []rspec.Mount {
	var mounts []rspec.Mount
	for _, name := range []string{"resolv.conf", "hosts", "hostname"} {
		mounts = append(mounts, rspec.Mount{
			Destination: "/etc/" + name, Type: "bind", Source: path.Join(dir, name),
			Options: []string{"rw", "bind", "rprivate", "nodev", "nosuid", "noexec"},
		})
	}
	return mounts
}

// sandboxSpec is the template of a pod's own container.
func (e *Engine) sandboxSpec(pod podInfo) (*rspec.Spec, error) {
	notes := podNotes(pod)
	notes[annotations.CRIOContainerType] = annotations.ContainerTypeSandbox
	notes[annotations.CRIOImageName] = pauseImage
	notes[crioContainerName], notes[crioContainerID] = pod.Name, pod.ID
	mounts := []rspec.Mount{fileMounts(pod.dir)[0], {
		Destination: pause.Path, Type: "bind", Source: e.Self, Options: []string{"ro", "bind", "rprivate", "nodev", "nosuid"},
	}}
	network := pod.Pod.Netns
	if pod.Pod.Network == NetworkNone {
		network = "" // the host's: the layers are pulled from there
	}
	spec, err := bundlegen.SandboxSpec([]string{pause.Path}, bundlegen.SpecOptions{
		Hostname:    pod.Pod.Hostname,
		Mounts:      mounts,
		Namespaces:  namespaces(network),
		CgroupsPath: path.Join(pod.Pod.CgroupParent, pod.ID),
		Annotations: notes,
	})
	if err != nil {
		return nil, err
	}
	// One thread and little memory are enough to wait.
	spec.Process.Env = append(spec.Process.Env, "GOMAXPROCS=1", "GOMEMLIMIT=8MiB")
	return spec, nil
}

// containerSpec is the template of a member of a pod.
func containerSpec(o Options, c bundles.Container, pod podInfo) (*rspec.Spec, error) {
	notes := podNotes(pod)
	notes[annotations.CRIOContainerType] = typeContainer
	notes[crioContainerName], notes[crioContainerID] = c.Name, c.ID
	notes[crioTTY], notes[crioStdin] = strconv.FormatBool(c.Terminal), strconv.FormatBool(c.Stdin)
	mounts := slices.DeleteFunc(fileMounts(pod.dir), func(m rspec.Mount) bool {
		return slices.ContainsFunc(o.Volumes, func(v rspec.Mount) bool { return path.Clean(v.Destination) == m.Destination })
	})
	return bundlegen.Spec(o.Image, o.Pulled, o.Request, bundlegen.SpecOptions{
		RewriteOptions: bundlegen.RewriteOptions{ResolvesNames: isHusk(c.Runtime)},
		Hostname:       pod.Pod.Hostname,
		ReadonlyRoot:   o.ReadonlyRoot,
		Terminal:       o.Terminal,
		Mounts:         append(mounts, o.Volumes...),
		Namespaces:     namespaces(pod.Pod.Netns),
		CgroupsPath:    path.Join(pod.Pod.CgroupParent, c.ID),
		Annotations:    notes,
	})
}

// podNotes are the annotations of every container of a pod, as CRI-O writes them.
func podNotes(pod podInfo) map[string]string {
	metadata, _ := json.Marshal(map[string]any{"name": pod.Pod.Name, "namespace": podNamespace, "uid": pod.ID}) //nolint:errchkjson // strings
	return map[string]string{
		annotations.CRIOSandboxID:      pod.ID,
		annotations.CRIORuntimeHandler: pod.Runtime.Name,
		annotations.CRIOResolvPath:     path.Join(pod.dir, "resolv.conf"),
		crioMetadata:                   string(metadata),
		crioSandboxName:                pod.Pod.Name,
		crioKubeName:                   pod.Pod.Name,
		crioNamespace:                  podNamespace,
		crioHostNetwork:                strconv.FormatBool(pod.Pod.Network == NetworkHost),
		crioCgroupParent:               pod.Pod.CgroupParent,
		crioCreated:                    time.Now().UTC().Format(time.RFC3339Nano),
	}
}

// namespaces are new ones, but for a network that has a path, and the host's if it has none.
func namespaces(netns string) []rspec.LinuxNamespace {
	list := []rspec.LinuxNamespace{
		{Type: rspec.PIDNamespace}, {Type: rspec.IPCNamespace}, {Type: rspec.UTSNamespace}, {Type: rspec.MountNamespace},
	}
	if netns != "" {
		list = append(list, rspec.LinuxNamespace{Type: rspec.NetworkNamespace, Path: netns})
	}
	if cgroups.Mode() == cgroups.Unified {
		list = append(list, rspec.LinuxNamespace{Type: rspec.CgroupNamespace})
	}
	return list
}

// joinSandbox puts a container into the namespaces that the containers of a pod share. Of
// a runtime with a kernel of its own the process is not what holds them.
func joinSandbox(pid int) func(*rspec.Spec) error {
	return func(spec *rspec.Spec) error {
		for i, ns := range spec.Linux.Namespaces {
			if ns.Type == rspec.IPCNamespace || ns.Type == rspec.UTSNamespace {
				spec.Linux.Namespaces[i].Path = fmt.Sprintf("/proc/%d/ns/%s", pid, ns.Type)
			}
		}
		spec.Hostname = "" // it is the pod's namespace, which has it
		return nil
	}
}

// guestPull is the volume by which stock CRI-O asks a runtime for a pull.
func guestPull(notes map[string]string) *katavolume.Volume {
	volume := katavolume.GuestPull(notes[annotations.CRIOImageName], notes)
	return &volume
}

// podGroupPrefix and the pod's ID name its cgroup.
const podGroupPrefix = "pod-"

// podCgroup is the cgroup of a pod below its parent, which may be named as systemd does.
func podCgroup(parent, id string) (string, error) {
	if parent == "" {
		parent = DefaultCgroupParent
	}
	group, err := sandbox.ParentCgroup(parent)
	if err != nil {
		return "", err
	}
	return path.Join(group, podGroupPrefix+id), nil
}
