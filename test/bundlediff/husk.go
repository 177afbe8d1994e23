package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/bundlegen"
)

// given is what a caller of bundlegen knows of the pod and of where the container will be.
type given struct {
	// cgroup is the container's.
	cgroup string
	// pod is the directory of the pod's files and of its shared memory.
	pod string
}

// generate makes the container's spec by bundlegen alone, and completes it where the image
// is unpacked.
func generate(image pushed, c combination, given given) (s side, err error) {
	rootfs, err := os.MkdirTemp("", "bundlediff-")
	if err != nil {
		return side{}, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(rootfs)) }()
	if err := unpack(rootfs, image.kind); err != nil {
		return side{}, fmt.Errorf("unpack: %w", err)
	}
	spec, err := specOf(image, c, given, rootfs)
	if err != nil {
		return side{refused: err.Error()}, nil
	}
	data, err := json.Marshal(spec)
	if err != nil {
		return side{}, err
	}
	return sideOf(data, c)
}

// specOf is what a user of the library does.
func specOf(image pushed, c combination, given given, rootfs string) (*rspec.Spec, error) {
	config := c.config()
	req := requestOf(config)
	spec, err := bundlegen.Spec(image.record, image.pulled, req, optionsOf(config, given))
	if err != nil {
		return nil, err
	}
	u, err := bundlegen.EffectiveUser(image.record.Image.Config, req)
	if err != nil {
		return nil, err
	}
	process, err := bundlegen.Effective(image.record.Image, req)
	if err != nil {
		return nil, err
	}
	if _, err := bundlegen.Complete(spec, rootfs, u, process.Volumes); err != nil {
		return nil, err
	}
	return spec, bundlegen.Validate(spec)
}

// requestOf is the part of a CRI request that bundlegen decides by, as internal/front
// takes it out.
func requestOf(config *cri.ContainerConfig) bundlegen.Request {
	security := config.GetLinux().GetSecurityContext()
	req := bundlegen.Request{
		Command: config.GetCommand(), Args: config.GetArgs(), WorkingDir: config.GetWorkingDir(),
		RunAsUser: number(security.GetRunAsUser()), RunAsUsername: security.GetRunAsUsername(), RunAsGroup: number(security.GetRunAsGroup()),
		SupplementalGroups: security.GetSupplementalGroups(),
	}
	for _, env := range config.GetEnvs() {
		req.Env = append(req.Env, env.GetKey()+"="+string(env.GetValue()))
	}
	if signal := config.GetStopSignal(); signal != cri.Signal_SIGNAL_RUNTIME_DEFAULT {
		req.StopSignal = strings.TrimPrefix(signal.String(), "SIGNAL_")
	}
	if security.GetSupplementalGroupsPolicy() == cri.SupplementalGroupsPolicy_Strict {
		req.GroupsPolicy = bundlegen.Strict
	}
	return req
}

func number(v *cri.Int64Value) *int64 {
	if v == nil {
		return nil
	}
	return &v.Value
}

// optionsOf is the rest of a request: what bundlegen's callers decide.
func optionsOf(config *cri.ContainerConfig, given given) bundlegen.SpecOptions {
	security := config.GetLinux().GetSecurityContext()
	opts := bundlegen.SpecOptions{
		RewriteOptions:  bundlegen.RewriteOptions{ResolvesNames: true},
		Hostname:        hostname,
		ReadonlyRoot:    security.GetReadonlyRootfs(),
		NoNewPrivileges: security.GetNoNewPrivs(),
		Terminal:        config.GetTty(),
		CgroupsPath:     given.cgroup,
		Unconfined:      security.GetSeccomp().GetProfileType() == cri.SecurityProfile_Unconfined,
		Annotations:     map[string]string{},
	}
	maps.Copy(opts.Annotations, config.GetAnnotations())
	maps.Copy(opts.Annotations, config.GetLabels())
	if r := config.GetLinux().GetResources(); r != nil {
		score := int(r.GetOomScoreAdj())
		opts.OOMScoreAdj = &score
	}
	root := "rw"
	if opts.ReadonlyRoot {
		root = "ro"
	}
	bind := func(at, source string, options ...string) {
		opts.Mounts = append(opts.Mounts, rspec.Mount{Destination: at, Type: "bind", Source: source, Options: options})
	}
	bind("/dev/shm", given.pod+"/shm", "rw", "bind")
	bind("/etc/resolv.conf", given.pod+"/resolv.conf", root, "bind", "nodev", "nosuid", "noexec")
	bind("/etc/hostname", given.pod+"/hostname", root, "bind")
	bind("/run/.containerenv", given.pod+"/.containerenv", root, "bind")
	for _, m := range config.GetMounts() {
		bind(m.GetContainerPath(), m.GetHostPath(), "rbind", "rprivate", "rw", "bind")
	}
	opts.Capabilities = capabilitiesOf(security.GetCapabilities())
	return opts
}

// capabilitiesOf is what the request makes of the default ones; nil are these.
func capabilitiesOf(caps *cri.Capability) []string {
	if caps == nil {
		return nil
	}
	list := slices.Clone(caps.GetAddCapabilities())
	if !slices.Contains(caps.GetDropCapabilities(), "ALL") {
		// CRI-O's default_capabilities, which the node leaves alone.
		list = append(list, "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "SETGID", "SETUID", "SETPCAP", "NET_BIND_SERVICE", "KILL")
	}
	list = slices.DeleteFunc(list, func(name string) bool { return slices.Contains(caps.GetDropCapabilities(), name) })
	if list == nil {
		return []string{}
	}
	return list
}
