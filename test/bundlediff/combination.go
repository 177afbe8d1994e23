package main

import (
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// combination is an image and a request for a container of it.
type combination struct {
	Topic, Name string
	Image       image
	// Request changes the request; nil leaves one that asks for what the image says.
	Request func(*cri.ContainerConfig)
	// Stock and Husk are parts of the refusals; "" for a container that is made.
	Stock, Husk string
	// Looks are further paths of the root filesystem to compare.
	Looks []string
}

func (c combination) name() string { return c.Topic + "/" + c.Name }

// config is the request as kubelet makes it, but for the image.
func (c combination) config() *cri.ContainerConfig {
	config := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: strings.Map(onlyLetters, c.name())},
		LogPath:  strings.Map(onlyLetters, c.name()) + ".log",
		Linux: &cri.LinuxContainerConfig{
			SecurityContext: &cri.LinuxContainerSecurityContext{
				NamespaceOptions: ownPID(),
				Seccomp:          &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined},
				// kubelet's for the default procMount.
				MaskedPaths: []string{
					"/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
					"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
				},
				ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
			},
		},
	}
	if c.Request != nil {
		c.Request(config)
	}
	return config
}

func onlyLetters(r rune) rune {
	if (r >= 'a' && r <= 'z') || (r >= 'A' && r <= 'Z') || (r >= '0' && r <= '9') {
		return r
	}
	return '-'
}

// paths are what may be made in the root filesystem: volumes and working directory with
// their parents, and what the combination names.
func (c combination) paths() []string {
	found := map[string]bool{"/etc/mtab": true}
	dirs := append(slices.Collect(maps.Keys(c.Image.Config.Volumes)), c.Image.Config.WorkingDir, c.config().GetWorkingDir())
	for _, dir := range dirs {
		for at := path.Join("/", dir); at != "/"; at = filepath.Dir(at) {
			found[at] = true
		}
	}
	for _, at := range c.Looks {
		found[at] = true
	}
	return slices.Sorted(maps.Keys(found))
}

// combinations are all of them.
func combinations() []combination {
	return slices.Concat(
		topic("process", processCases()), topic("env", envCases()), topic("cwd", cwdCases()), topic("stop", stopCases()),
		topic("volumes", volumeCases()), topic("image", imageCases()), topic("request", requestCases()), topic("user", imageUsers()),
		topic("run-as", requestUsers()), topic("groups", groupCases()), topic("files", fileCases()),
	)
}

func topic(name string, list []combination) []combination {
	for i := range list {
		list[i].Topic = name
	}
	return list
}

// of is the usual image with a config that runs something.
func of(change func(*v1.Config)) image {
	config := v1.Config{Cmd: []string{"/bin/true"}, Env: []string{"PATH=/bin"}}
	if change != nil {
		change(&config)
	}
	return image{Config: config}
}

// security changes the security context of a request.
func security(change func(*cri.LinuxContainerSecurityContext)) func(*cri.ContainerConfig) {
	return func(config *cri.ContainerConfig) { change(config.Linux.SecurityContext) }
}
