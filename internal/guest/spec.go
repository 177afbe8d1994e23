package guest

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/husk-cri/husk/bundlegen"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// hostname is image-rs's.
const hostname = "image-rs"

// runtimeConfig returns config.json for an image unpacked at rootfs, which the bundle
// has at path. It follows the OCI image spec's conversion.md; the default spec is
// runc's, as in image-rs. The image's user is resolved with its own passwd file.
func runtimeConfig(image imgspec.Image, rootfs, path string) ([]byte, error) {
	req := bundlegen.Request{}
	if len(image.Config.Entrypoint)+len(image.Config.Cmd) == 0 {
		// image-rs leaves its default. The agent puts the pod's command there anyway.
		req.Command = []string{"sh"}
	}
	process, err := bundlegen.Effective(image, req)
	if err != nil {
		return nil, err
	}
	user, err := bundlegen.EffectiveUser(image.Config, req)
	if err != nil {
		return nil, err
	}
	spec := defaultSpec()
	spec.Process.Args, spec.Process.Cwd = process.Args, process.Cwd
	spec.Process.Env = process.Env
	if !slices.ContainsFunc(process.Env, func(e string) bool { return strings.HasPrefix(e, "PATH=") }) {
		spec.Process.Env = append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, process.Env...)
	}
	spec.Annotations = imageAnnotations(image)
	if _, err := bundlegen.Complete(spec, rootfs, user, process.Volumes); err != nil {
		return nil, err
	}
	spec.Root.Path = path
	data, err := json.MarshalIndent(spec, "", "  ")
	if err != nil {
		return nil, errdefs.New(errdefs.Internal, "write runtime config", err)
	}
	return data, nil
}

// imageAnnotations are those of conversion.md. The image's labels win over them.
func imageAnnotations(image imgspec.Image) map[string]string {
	ports := slices.Sorted(maps.Keys(image.Config.ExposedPorts))
	all := map[string]string{
		"org.opencontainers.image.os":           image.OS,
		"org.opencontainers.image.os.version":   image.OSVersion,
		"org.opencontainers.image.architecture": image.Architecture,
		"org.opencontainers.image.variant":      image.Variant,
		"org.opencontainers.image.author":       image.Author,
		"org.opencontainers.image.stopSignal":   image.Config.StopSignal,
		"org.opencontainers.image.exposedPorts": strings.Join(ports, ","),
	}
	if image.Created != nil {
		all["org.opencontainers.image.created"] = image.Created.Format(time.RFC3339Nano)
	}
	maps.DeleteFunc(all, func(_, v string) bool { return v == "" })
	maps.Copy(all, image.Config.Labels)
	return all
}

// defaultSpec is what runc spec writes, without a terminal.
func defaultSpec() *rspec.Spec {
	capabilities := []string{"CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"}
	return &rspec.Spec{
		Version:  "1.0.2",
		Hostname: hostname,
		Root:     &rspec.Root{},
		Process: &rspec.Process{
			NoNewPrivileges: true,
			Capabilities:    &rspec.LinuxCapabilities{Bounding: capabilities, Effective: capabilities, Permitted: capabilities},
			Rlimits:         []rspec.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1024, Soft: 1024}},
		},
		Mounts: defaultMounts(),
		Linux: &rspec.Linux{
			Resources: &rspec.LinuxResources{Devices: []rspec.LinuxDeviceCgroup{{Access: "rwm"}}},
			Namespaces: []rspec.LinuxNamespace{
				{Type: rspec.PIDNamespace}, {Type: rspec.NetworkNamespace}, {Type: rspec.IPCNamespace},
				{Type: rspec.UTSNamespace}, {Type: rspec.MountNamespace},
			},
			MaskedPaths: []string{
				"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
				"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
			},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

func defaultMounts() []rspec.Mount {
	const nosuid, noexec, nodev, ro, relatime = "nosuid", "noexec", "nodev", "ro", "relatime"
	return []rspec.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc"},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{nosuid, "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{nosuid, noexec, "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{nosuid, noexec, nodev, "mode=1777", "size=65536k"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{nosuid, noexec, nodev}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{nosuid, noexec, nodev, ro}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{nosuid, noexec, nodev, relatime, ro}},
	}
}
