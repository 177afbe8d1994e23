// Package annotations names the annotations that Husk reads and writes, and the
// ones of CRI-O and Kata that it relies on.
package annotations

import "strings"

// Annotations of CRI-O and Kata (CRI-O pkg/annotations; Kata kata_agent.go
// handleImageGuestPullBlockVolume and rootfs/virtual_volume.rs).
const (
	// CRIOImageName tells the runtime which image to pull. CRI-O writes it, but
	// annotations of the CRI request are applied later and win.
	CRIOImageName = "io.kubernetes.cri-o.ImageName"
	// CRIOSandboxID groups the containers of one pod in config.json.
	CRIOSandboxID = "io.kubernetes.cri-o.SandboxID"
	// CRIOContainerType is "sandbox" for the pause container, else "container".
	CRIOContainerType = "io.kubernetes.cri-o.ContainerType"
	// CRIOResolvPath is the host path of the pod's resolv.conf.
	CRIOResolvPath = "io.kubernetes.cri-o.ResolvPath"
	// CRIORuntimeHandler on a sandbox is its runtime handler.
	CRIORuntimeHandler = "io.kubernetes.cri-o.RuntimeHandler"

	// ContainerTypeSandbox is the value of CRIOContainerType for a pause container.
	ContainerTypeSandbox = "sandbox"
)

// Prefix starts every annotation of Husk. A CRI client may only set
// [RuntimeHandler]; the others are written by the front, which refuses them in
// a request, because the shim and the status trust them.
const Prefix = "husk.dev/"

// Annotations of Husk.
const (
	// RuntimeHandler in a CRI image spec names the handler a pull is for, where a
	// client cannot set image.runtime_handler.
	RuntimeHandler = Prefix + "runtime-handler"
	// RecordID on a container is the storage ID of the layer-less record it was created from.
	RecordID = Prefix + "record-id"
	// ImageID on a container is the true image ID: the config digest, 64 hex digits.
	ImageID = Prefix + "image-id"
	// ImageRef on a container is the pinned reference, repo@digest, that was pulled.
	ImageRef = Prefix + "image-ref"
	// UserImage on a container is the reference as the user wrote it (for status.image).
	UserImage = Prefix + "user-image"
	// User on a container is the JSON of bundlegen.User: whom to run as, to be
	// resolved against the image's own passwd and group files where the layers are.
	User = Prefix + "user"
	// ImageVolumes on a container lists the volumes of the image config as a JSON
	// array of absolute paths.
	ImageVolumes = Prefix + "image-volumes"
	// ImageMounts on a container is the JSON of []bundlegen.ImageMount: images whose
	// content the runtime is to mount into the container, read-only (KEP-4639).
	ImageMounts = Prefix + "image-mounts"
)

// crioPrefix starts most annotations of CRI-O, those that a pod may set among them.
const crioPrefix = "io.kubernetes.cri-o."

// Reserved reports whether a guest-pull pod and its containers must not set key, as an
// annotation or as a label. CRI-O writes those of a request into the runtime spec after
// its own, so that a pod could otherwise say of itself what front, shim and Kata take
// CRI-O's word for: which sandbox it is in, whether it is a pause container, which
// image it runs, where its resolv.conf and its network are. [RuntimeHandler] is Husk's
// only key that is not reserved.
func Reserved(key string) bool {
	if strings.HasPrefix(key, Prefix) {
		return key != RuntimeHandler
	}
	switch key {
	case "io.container.manager", "io.kubernetes.cri.container-type", "io.kubernetes.cri.image-name", "io.kubernetes.cri.sandbox-id":
		return true // the last three are containerd's; Kata reads them too
	}
	name, ok := strings.CutPrefix(key, crioPrefix)
	if !ok {
		return false
	}
	if name, _, ok := strings.Cut(name, "."); ok && name == "IP" {
		return true // IP.0, IP.1, ...
	}
	switch name { // CRI-O 1.34, pkg/annotations/internal.go, and two that only it writes
	case "Annotations", "CNIResult", "CgroupParent", "ContainerID", "ContainerName", "ContainerType", "Created",
		"HostName", "HostNetwork", "HostnamePath", "IP", "Image", "ImageName", "ImageRef", "KubeName", "Labels",
		"LogPath", "Metadata", "MountPoint", "Name", "Namespace", "NamespaceOptions", "PlatformRuntimePath",
		"PortMappings", "PrivilegedRuntime", "ResolvPath", "RuntimeHandler", "SandboxID", "SandboxName",
		"SeccompProfilePath", "ShmPath", "Spoofed", "Stdin", "StdinOnce", "TTY", "Volumes":
		return true
	}
	return false
}
