package front

import (
	"context"
	"errors"
	"slices"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/internal/sandboxes"
	"github.com/husk-cri/husk/pkg/imageref"
)

// seenAnnotation is kubelet's, on every pod and its sandboxes: when kubelet first saw the
// pod, to the nanosecond. A presence check names its pod by nothing else.
const seenAnnotation = "kubernetes.io/config.seen"

// lacking reports whether the pod that asks for an image does not hold it, although the
// node has found, its records: kubelet is to pull it then, with the pod's own credentials.
// A container that is created instead has those of the node alone.
// Who asks without a pod, and a pod whose shim cannot tell, sees the node's records.
func (s *Server) lacking(ctx context.Context, h Handler, spec *cri.ImageSpec, q imageref.Query, found []imageref.Record) (bool, error) {
	if len(found) == 0 || !h.eager() || h.PresentOnNode || s.Layers == nil {
		return false, nil
	}
	id, err := s.asking(ctx, spec)
	if err != nil || id == "" {
		return false, err
	}
	held, err := s.Layers.Images(ctx, id)
	if errors.Is(err, sandboxes.ErrOldShim) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	rec, pulled := imageref.Choose(found, q.Candidates)
	return !slices.ContainsFunc(held, func(i sandboxes.Image) bool {
		// Held by another repository's name it would be pulled again by this one's.
		return i.ID == rec.ImageID() && (!q.ID.IsZero() || i.Reference == pulled.Pinned().String())
	}), nil
}

// asking returns the sandbox of the pod that a presence check is for, the newest if there
// are several; "" when the check names none that is running. After a restart of kubelet the
// pods from before have another time in their sandboxes, and are not found.
func (s *Server) asking(ctx context.Context, spec *cri.ImageSpec) (string, error) {
	seen := spec.GetAnnotations()[seenAnnotation]
	if seen == "" {
		return "", nil
	}
	request := &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{
		State: &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY},
	}}
	answer := new(cri.ListPodSandboxResponse)
	if err := s.ask(ctx, cri.RuntimeService_ListPodSandbox_FullMethodName, request, answer); err != nil {
		return "", err
	}
	var newest *cri.PodSandbox
	for _, sandbox := range answer.GetItems() {
		if sandbox.GetAnnotations()[seenAnnotation] == seen && (newest == nil || sandbox.GetCreatedAt() > newest.GetCreatedAt()) {
			newest = sandbox
		}
	}
	return newest.GetId(), nil
}
