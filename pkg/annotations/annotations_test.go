package annotations

import (
	"testing"

	. "github.com/onsi/gomega"
)

func TestReserved(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	for _, key := range []string{
		RecordID, ImageID, ImageRef, UserImage, User, ImageVolumes, Prefix + "of-tomorrow",
		CRIOImageName, CRIOSandboxID, CRIOContainerType, CRIOResolvPath, CRIORuntimeHandler,
		"io.kubernetes.cri-o.Image", "io.kubernetes.cri-o.ImageRef", "io.kubernetes.cri-o.CgroupParent",
		"io.kubernetes.cri-o.HostNetwork", "io.kubernetes.cri-o.IP.0", "io.kubernetes.cri-o.MountPoint",
		"io.kubernetes.cri-o.Spoofed", "io.container.manager", "io.kubernetes.cri.container-type",
	} {
		g.Expect(Reserved(key)).To(BeTrue(), key)
	}
	// What pods set, and what kubelet sets on them and their containers.
	for _, key := range []string{
		RuntimeHandler, "io.kubernetes.cri-o.userns-mode", "io.kubernetes.cri-o.ShmSize", "io.kubernetes.cri-o.Devices",
		"io.kubernetes.cri-o.umask", "io.kubernetes.cri-o.LinkLogs", "io.kubernetes.cri-o.seccompNotifierAction",
		"io.kubernetes.cri-o.TrySkipVolumeSELinuxLabel", "io.kubernetes.container.hash", "io.kubernetes.container.name",
		"io.kubernetes.pod.uid", "kubernetes.io/config.seen", "io.katacontainers.config.hypervisor.cc_init_data",
		"io.containerd.cri.runtime-handler", "org.opencontainers.image.stopSignal", "",
	} {
		g.Expect(Reserved(key)).To(BeFalse(), key)
	}
}
