package front_test

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/pkg/annotations"
	"github.com/husk-cri/husk/pkg/imageref"
)

// errNeverPull is kubelet's own error.
var errNeverPull = errors.New("ErrImageNeverPull")

// kubelet replays the calls of kubelet 1.34 (traced: NODE.md, "What kubelet sends";
// pkg/kubelet/images/image_manager.go, pkg/kubelet/kuberuntime).
type kubelet struct {
	*node
	policy  string // Always, IfNotPresent, Never
	gate    bool   // RuntimeClassInImageCriApi
	handler string
	user    *int64            // runAsUser of the container: its own or the pod's
	group   *int64            // runAsGroup of the container
	keyring []*cri.AuthConfig // one PullImage each, until one succeeds
	ensure  *pullRecords      // KubeletEnsureSecretPulledImages; nil: the gate is off
	attempt uint32
	sent    *cri.CreateContainerRequest
}

// start makes the calls of one container start, after RunPodSandbox.
func (k *kubelet) start(t *testing.T, sandbox string, config *cri.PodSandboxConfig) error {
	t.Helper()
	ctx := t.Context()
	if _, err := k.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: sandbox}); err != nil {
		return err
	}
	ref, err := k.ensureImage(t, config)
	if err != nil {
		return err
	}
	query, err := k.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: appImage}})
	if err != nil {
		return err
	}
	k.sent = k.createRequest(ref, sandbox, config)
	switch security, found := k.sent.Config.Linux.SecurityContext, query.GetImage(); { // getImageUser
	case k.user != nil:
		security.RunAsUser = &cri.Int64Value{Value: *k.user}
	case found.GetUid() != nil:
		security.RunAsUser = found.GetUid()
	case found.GetUsername() != "":
		security.RunAsUsername = found.GetUsername()
	default:
		security.RunAsUser = &cri.Int64Value{Value: 0}
	}
	if k.group != nil {
		k.sent.Config.Linux.SecurityContext.RunAsGroup = &cri.Int64Value{Value: *k.group}
	}
	k.attempt++
	_, err = k.CreateContainer(ctx, k.sent)
	return err
}

// ensureImage is EnsureImageExists.
func (k *kubelet) ensureImage(t *testing.T, config *cri.PodSandboxConfig) (string, error) {
	t.Helper()
	ref := ""
	if k.policy != "Always" {
		present, err := k.ImageStatus(t.Context(), &cri.ImageStatusRequest{Image: k.spec()})
		if err != nil {
			return "", err
		}
		ref = present.GetImage().GetId()
	}
	if ref != "" && (k.ensure == nil || !k.ensure.mustPull(appImage, ref, k.keyring)) {
		return ref, nil
	}
	if k.policy == "Never" {
		return "", errNeverPull
	}
	return k.pullImage(t, config)
}

func (k *kubelet) pullImage(t *testing.T, config *cri.PodSandboxConfig) (string, error) {
	t.Helper()
	keyring := k.keyring
	if len(keyring) == 0 {
		keyring = []*cri.AuthConfig{nil}
	}
	if k.ensure != nil {
		k.ensure.intents[appImage]++
	}
	var failed error
	for _, auth := range keyring {
		pulled, err := k.PullImage(t.Context(), &cri.PullImageRequest{Image: k.spec(), Auth: auth, SandboxConfig: config})
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		if k.ensure != nil {
			k.ensure.pulled(appImage, pulled.ImageRef, auth)
		}
		// For the size in the event.
		size, err := k.ImageStatus(t.Context(), &cri.ImageStatusRequest{Image: k.spec()})
		if k.gate && k.handler != "runc" && err == nil {
			k.Expect(size.GetImage().GetId()).To(Equal(pulled.ImageRef), "the ref is the ID that ImageStatus answers")
		}
		return pulled.ImageRef, err
	}
	if k.ensure != nil {
		k.ensure.intents[appImage]--
	}
	return "", failed
}

// spec is the image in every call but the user query.
func (k *kubelet) spec() *cri.ImageSpec {
	s := &cri.ImageSpec{Image: appImage, Annotations: podAnnotations()}
	if k.gate {
		s.RuntimeHandler = k.handler
	}
	return s
}

// createRequest is what kubelet sends for a container, but for the user.
func (k *kubelet) createRequest(ref, sandbox string, config *cri.PodSandboxConfig) *cri.CreateContainerRequest {
	return &cri.CreateContainerRequest{
		PodSandboxId: sandbox, SandboxConfig: config,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "app", Attempt: k.attempt},
			Image:    &cri.ImageSpec{Image: ref, UserSpecifiedImage: appImage},
			Command:  []string{"/bin/app"}, Args: []string{"-v"}, WorkingDir: "/srv",
			Labels: map[string]string{
				"io.kubernetes.container.name": "app", "io.kubernetes.pod.name": config.Metadata.Name,
				"io.kubernetes.pod.namespace": config.Metadata.Namespace, "io.kubernetes.pod.uid": config.Metadata.Uid,
			},
			Annotations: map[string]string{
				"io.kubernetes.container.hash": "1", "io.kubernetes.container.restartCount": "0",
				"io.kubernetes.container.terminationMessagePath": "/dev/termination-log",
			},
			Envs:    []*cri.KeyValue{{Key: "A", Value: []byte("1")}},
			Mounts:  []*cri.Mount{{ContainerPath: "/etc/hosts", HostPath: "/var/lib/kubelet/pods/1/etc-hosts"}},
			LogPath: "app/0.log",
			Linux: &cri.LinuxContainerConfig{
				Resources: &cri.LinuxContainerResources{CpuShares: 2, OomScoreAdj: 1000},
				SecurityContext: &cri.LinuxContainerSecurityContext{
					NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER},
					MaskedPaths:      []string{"/proc/kcore"}, ReadonlyPaths: []string{"/proc/sys"}, NoNewPrivs: true,
				},
			},
		},
	}
}

// checkCreated compares the last container with what kubelet asked for: of all fields
// only those of the image and the user may differ. user is the annotation that the
// shim resolves.
func (k *kubelet) checkCreated(rec imageref.Record, user string) {
	k.crio.mu.Lock()
	got := k.crio.created[len(k.crio.created)-1]
	k.crio.mu.Unlock()
	pinned := "registry.local/app@" + rec.Manifest.String()
	notes := maps.Clone(got.Config.Annotations)
	k.Expect(notes).To(And(
		HaveKeyWithValue(annotations.User, MatchJSON(user)),
		HaveKeyWithValue(annotations.CRIOImageName, pinned),
		HaveKeyWithValue(annotations.RecordID, rec.StorageID.String()),
		HaveKeyWithValue(annotations.ImageID, rec.ImageID().String()),
		HaveKeyWithValue(annotations.ImageRef, pinned),
		HaveKeyWithValue(annotations.UserImage, appImage),
	))
	maps.DeleteFunc(notes, func(key, _ string) bool {
		return strings.HasPrefix(key, annotations.Prefix) || key == annotations.CRIOImageName
	})
	rest, ok := proto.Clone(got).(*cri.CreateContainerRequest)
	k.Expect(ok).To(BeTrue())
	rest.Config.Annotations = notes
	k.Expect(rest.Config.Image.Image).To(Equal(rec.StorageID.String()))
	k.Expect(rest.Config.Image.UserSpecifiedImage).To(Equal(appImage))
	k.Expect(rest.Config.Linux.SecurityContext.RunAsUsername).To(BeEmpty())
	asked, ok := proto.Clone(k.sent).(*cri.CreateContainerRequest)
	k.Expect(ok).To(BeTrue())
	for _, c := range []*cri.CreateContainerRequest{rest, asked} {
		c.Config.Image.Image = ""
		security := c.Config.Linux.SecurityContext
		security.RunAsUser, security.RunAsUsername, security.RunAsGroup = nil, "", nil
	}
	k.Expect(proto.Equal(rest, asked)).To(BeTrue(), "%v\nis not\n%v", rest, asked)

	status, err := k.ContainerStatus(context.Background(), &cri.ContainerStatusRequest{ContainerId: k.lastContainer()})
	k.Expect(err).NotTo(HaveOccurred())
	k.Expect([]string{status.Status.Image.Image, status.Status.ImageRef, status.Status.ImageId}).
		To(Equal([]string{appImage, pinned, rec.ImageID().String()}))
}

// pullRecords is kubelet's memory of who pulled what (KEP-2535,
// pkg/kubelet/images/pullmanager), with the policy NeverVerifyPreloadedImages.
type pullRecords struct {
	intents map[string]int
	records map[string]map[string]*access // by image ref, by repository
}

// access is who may use an image without a pull.
type access struct {
	everybody bool
	secrets   []string
}

func newPullRecords() *pullRecords {
	return &pullRecords{intents: map[string]int{}, records: map[string]map[string]*access{}}
}

func repository(image string) string { return image[:strings.LastIndex(image, ":")] }

// mustPull is MustAttemptImagePull.
func (p *pullRecords) mustPull(image, ref string, keyring []*cri.AuthConfig) bool {
	record, ok := p.records[ref]
	if !ok && p.intents[image] == 0 {
		return false // not pulled by kubelet: preloaded
	}
	allowed := record[repository(image)]
	if allowed == nil {
		return true
	}
	return !allowed.everybody && !slices.ContainsFunc(keyring, func(a *cri.AuthConfig) bool {
		return slices.Contains(allowed.secrets, a.Password)
	})
}

// pulled is RecordImagePulled.
func (p *pullRecords) pulled(image, ref string, auth *cri.AuthConfig) {
	p.intents[image]--
	if p.records[ref] == nil {
		p.records[ref] = map[string]*access{}
	}
	allowed := p.records[ref][repository(image)]
	if allowed == nil {
		allowed = new(access)
		p.records[ref][repository(image)] = allowed
	}
	if auth == nil {
		allowed.everybody = true
	} else if !slices.Contains(allowed.secrets, auth.Password) {
		allowed.secrets = append(allowed.secrets, auth.Password)
	}
}

// restarted is what a new kubelet makes of pulls that were under way: the images it
// finds by their names count as pulled, by nobody.
func (p *pullRecords) restarted(images []*cri.Image) {
	for _, image := range images {
		for _, name := range slices.Concat(image.RepoTags, image.RepoDigests) {
			if p.intents[name] > 0 {
				if p.records[image.Id] == nil {
					p.records[image.Id] = map[string]*access{}
				}
				delete(p.intents, name)
			}
		}
	}
}

// prune is PruneUnknownRecords.
func (p *pullRecords) prune(images []*cri.Image) {
	maps.DeleteFunc(p.records, func(ref string, _ map[string]*access) bool {
		return !slices.ContainsFunc(images, func(i *cri.Image) bool { return i.Id == ref })
	})
}
