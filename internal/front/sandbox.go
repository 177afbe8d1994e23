package front

import (
	"context"
	"encoding/json"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/pkg/annotations"
	"github.com/husk-cri/husk/pkg/errdefs"
)

const (
	// podUIDLabel is kubelet's label that tells pods apart.
	podUIDLabel = "io.kubernetes.pod.uid"
	// infoKey is the key of CRI-O's verbose answers.
	infoKey = "info"
)

// runPodSandbox refuses a guest-pull pod that says of itself what only CRI-O may
// say, and what front and shim believe. Everything else is CRI-O's.
func (s *Server) runPodSandbox(c *call) error {
	req := new(cri.RunPodSandboxRequest)
	if err := c.decode(req); err != nil {
		return err
	}
	config, name := req.GetConfig(), req.GetRuntimeHandler()
	c.notePod(config)
	c.note("handler", name)
	// A handler that Husk does not know is CRI-O's to refuse.
	if h, err := s.live.Load().orDefault(name); err == nil && h.GuestPull {
		op := "run pod sandbox " + config.GetMetadata().GetName()
		if err := refuseKeys(op, "the pod", annotations.Reserved, config.GetAnnotations(), config.GetLabels()); err != nil {
			return err
		}
	}
	return c.passOn()
}

// refuseKeys refuses annotations and labels that are reserved. CRI-O writes those of a
// request, first the annotations and then the labels, into the runtime spec, over its own.
func refuseKeys(op, who string, reserved func(string) bool, notes, labels map[string]string) error {
	for key := range notes {
		if reserved(key) {
			return errdefs.Newf(errdefs.InvalidArgument, op, "%s must not set the annotation %s", who, bounded(key))
		}
	}
	for key := range labels {
		if reserved(key) {
			return errdefs.Newf(errdefs.InvalidArgument, op, "%s must not set the label %s", who, bounded(key))
		}
	}
	return nil
}

// pod is what CRI-O says of a sandbox.
type pod struct {
	handler Handler
	status  *cri.PodSandboxStatus
	info    string // the verbose part, JSON
}

// podByID asks CRI-O for a sandbox.
func (s *Server) podByID(ctx context.Context, now *live, id string) (*pod, error) {
	op := "find the runtime handler of sandbox " + id
	answer := new(cri.PodSandboxStatusResponse)
	request := &cri.PodSandboxStatusRequest{PodSandboxId: id, Verbose: true}
	if err := s.ask(ctx, cri.RuntimeService_PodSandboxStatus_FullMethodName, request, answer); err != nil {
		return nil, err
	}
	p := &pod{status: answer.GetStatus(), info: answer.GetInfo()[infoKey]}
	name := p.status.GetRuntimeHandler()
	if name == "" { // CRI-O 1.34 tells it in the runtime spec alone
		// A pod that brings the key could claim another handler than it runs under, and
		// have its layers pulled to the host.
		claims := func(key string) bool { return key == annotations.CRIORuntimeHandler }
		if err := refuseKeys(op, "the pod", claims, p.status.GetAnnotations(), p.status.GetLabels()); err != nil {
			return nil, err
		}
		var info struct {
			RuntimeSpec struct {
				Annotations map[string]string `json:"annotations"`
			} `json:"runtimeSpec"`
		}
		if err := json.Unmarshal([]byte(p.info), &info); err != nil {
			return nil, errdefs.Newf(errdefs.Internal, op, "read CRI-O's verbose status: %w", err)
		}
		var ok bool
		if name, ok = info.RuntimeSpec.Annotations[annotations.CRIORuntimeHandler]; !ok {
			return nil, errdefs.Newf(errdefs.Internal, op, "CRI-O's verbose status has no %s", annotations.CRIORuntimeHandler)
		}
	}
	var err error
	p.handler, err = now.orDefault(name)
	return p, err
}

// place is where a pull for the pod is to run. A pod that could have claimed another
// place than its own is refused: it would send its pulls, and its credentials with
// them, through a network it must not use.
func (p *pod) place() (Place, error) {
	op := "find the network of sandbox " + p.status.GetId()
	if err := refuseKeys(op, "the pod", annotations.Reserved, p.status.GetAnnotations(), p.status.GetLabels()); err != nil {
		return Place{}, err
	}
	if p.info == "" {
		return Place{}, errdefs.Newf(errdefs.Internal, op, "CRI-O's verbose status is empty")
	}
	return Place{Sandbox: []byte(p.info)}, nil
}

// podOf returns the sandbox with the config's metadata; nil when CRI-O has none.
func (s *Server) podOf(ctx context.Context, now *live, config *cri.PodSandboxConfig) (*pod, error) {
	want := config.GetMetadata()
	if want.GetName() == "" {
		return nil, nil
	}
	request := new(cri.ListPodSandboxRequest)
	if uid := config.GetLabels()[podUIDLabel]; uid != "" && uid == want.GetUid() {
		request.Filter = &cri.PodSandboxFilter{LabelSelector: map[string]string{podUIDLabel: uid}}
	}
	answer := new(cri.ListPodSandboxResponse)
	if err := s.ask(ctx, cri.RuntimeService_ListPodSandbox_FullMethodName, request, answer); err != nil {
		return nil, err
	}
	for _, sandbox := range answer.GetItems() {
		have := sandbox.GetMetadata()
		if have.GetName() == want.GetName() && have.GetNamespace() == want.GetNamespace() &&
			have.GetUid() == want.GetUid() && have.GetAttempt() == want.GetAttempt() {
			return s.podByID(ctx, now, sandbox.GetId())
		}
	}
	return nil, nil
}
