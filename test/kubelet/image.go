package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/distribution/reference"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"
)

// Reasons that kubelet shows for a container that does not run
// (pkg/kubelet/images/types.go, kuberuntime/kuberuntime_container.go).
var (
	errInvalidImageName      = errors.New("InvalidImageName")
	errImageInspect          = errors.New("ImageInspectError")
	errImageNeverPull        = errors.New("ErrImageNeverPull")
	errImagePull             = errors.New("ErrImagePull")
	errImagePullBackOff      = errors.New("ImagePullBackOff")
	errCreateContainerConfig = errors.New("CreateContainerConfigError")
	errCreateContainer       = errors.New("CreateContainerError")
	errRunContainer          = errors.New("RunContainerError")
)

// reasoned is an error with kubelet's reason for it.
type reasoned struct {
	reason  error
	message string
}

func (e *reasoned) Error() string { return e.reason.Error() + ": " + e.message }
func (e *reasoned) Unwrap() error { return e.reason }

func because(reason, err error) error { return &reasoned{reason, err.Error()} }

// secret is a credential from a Secret of the pod's imagePullSecrets.
type secret struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Username  string `json:"username"`
	Password  string `json:"password"`
}

// imageSpec is the image in every call but the user query (kuberuntime/convert.go,
// toRuntimeAPIImageSpec): with all annotations of the pod.
func (k *kubelet) imageSpec(p *pod, image string) *cri.ImageSpec {
	spec := &cri.ImageSpec{Image: image, Annotations: p.Annotations}
	if k.node.Gate {
		spec.RuntimeHandler = p.Handler
	}
	return spec
}

// ensureImageExists is EnsureImageExists (pkg/kubelet/images/image_manager.go). It
// returns what CreateContainer gets as the image.
func (k *kubelet) ensureImageExists(ctx context.Context, p *pod, requested string, config *cri.PodSandboxConfig) (string, error) {
	image, err := withDefaultTag(requested)
	if err != nil {
		return "", because(errInvalidImageName, err)
	}
	spec := k.imageSpec(p, image)
	ref, err := k.precheck(ctx, p, spec)
	if err != nil {
		return "", err
	}
	if ref != "" {
		must, err := k.mustAttemptPull(p, requested, ref)
		if err != nil || !must {
			return ref, err
		}
	}
	if p.Policy == "Never" {
		// There, but not for this pod: that is told to nobody.
		return "", because(errImageNeverPull, fmt.Errorf("container image %q is not present with pull policy of Never", requested))
	}
	return k.pull(ctx, p, requested, spec, config)
}

// precheck is imagePullPrecheck: the image that is there, or "".
func (k *kubelet) precheck(ctx context.Context, p *pod, spec *cri.ImageSpec) (string, error) {
	if p.Policy == "Always" {
		return "", nil
	}
	image, err := k.cri.imageStatus(ctx, spec)
	if err != nil {
		return "", because(errImageInspect, err)
	}
	if image == nil && p.Policy == "Never" {
		return "", because(errImageNeverPull, fmt.Errorf("container image %q is not present with pull policy of Never", spec.Image))
	}
	return image.GetId(), nil
}

// mustAttemptPull reports whether a present image has to be pulled because nobody has
// shown yet that this pod may have it; without the gate never.
func (k *kubelet) mustAttemptPull(p *pod, image, ref string) (bool, error) {
	if k.pulled == nil {
		return false, nil
	}
	must := false
	err := k.pulled.update(func(r *pullRecords) { must = r.mustAttempt(image, ref, p.Secrets) })
	return must, err
}

// pull is imageManager.pullImage, with its records of intents and of what was pulled.
func (k *kubelet) pull(ctx context.Context, p *pod, image string, spec *cri.ImageSpec, config *cri.PodSandboxConfig) (string, error) {
	if k.pulled != nil {
		if err := k.pulled.update(func(r *pullRecords) { r.intend(image) }); err != nil {
			return "", err
		}
	}
	ref, used, pullErr := k.pullUnlessBackOff(ctx, p, image, spec, config)
	if k.pulled != nil {
		if err := k.pulled.update(func(r *pullRecords) {
			if pullErr == nil {
				r.record(image, ref, used)
			}
			r.settled(image)
		}); err != nil {
			return "", err
		}
	}
	return ref, pullErr
}

// pullUnlessBackOff is the rest of imageManager.pullImage.
func (k *kubelet) pullUnlessBackOff(ctx context.Context, p *pod, image string, spec *cri.ImageSpec, config *cri.PodSandboxConfig) (string, *secret, error) {
	if err := p.inBackOff(image, k.node.now()); err != nil {
		return "", nil, err
	}
	ref, used, err := k.tryCredentials(ctx, p, spec, config)
	if err != nil {
		why := pullError(image, err)
		p.pullFailed(image, k.node.now(), why)
		return "", nil, why
	}
	// pkg/kubelet/images/puller.go: the size, for the event; an error means nothing.
	_, _ = k.cri.imageStatus(ctx, spec)
	return ref, used, nil
}

// tryCredentials is kubeGenericRuntimeManager.PullImage (kuberuntime/kuberuntime_image.go).
func (k *kubelet) tryCredentials(ctx context.Context, p *pod, spec *cri.ImageSpec, config *cri.PodSandboxConfig) (string, *secret, error) {
	if len(p.Secrets) == 0 {
		ref, err := k.cri.pullImage(ctx, spec, nil, config)
		return ref, nil, err
	}
	var failed []string
	var last error
	for _, s := range p.Secrets {
		ref, err := k.cri.pullImage(ctx, spec, &cri.AuthConfig{Username: s.Username, Password: s.Password}, config)
		if err == nil {
			return ref, &s, nil
		}
		failed, last = append(failed, err.Error()), err
	}
	if len(failed) == 1 {
		return "", nil, last
	}
	return "", nil, errors.New("[" + strings.Join(failed, ", ") + "]") // utilerrors.Aggregate
}

// pullError is evalCRIPullErr: kubelet tells the errors of the CRI by how the text begins.
func pullError(image string, err error) *reasoned {
	for sentinel, why := range map[error]string{
		crierrors.ErrRegistryUnavailable: "the registry is unavailable", crierrors.ErrSignatureValidationFailed: "the signature validation failed",
	} {
		if rest, ok := strings.CutPrefix(err.Error(), sentinel.Error()); ok {
			return &reasoned{sentinel, fmt.Sprintf("image pull failed for %s because %s%s", image, why, rest)}
		}
	}
	return &reasoned{errImagePull, err.Error()}
}

// withDefaultTag is applyDefaultImageTag.
func withDefaultTag(image string) (string, error) {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return "", err
	}
	if reference.IsNameOnly(named) {
		return image + ":latest", nil
	}
	return image, nil
}
