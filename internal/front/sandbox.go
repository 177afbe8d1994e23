package front

import (
	"context"
	"encoding/json"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/pkg/annotations"
	"github.com/husk-cri/husk/pkg/errdefs"
)

const (
	// crioHandler is where CRI-O keeps a sandbox's handler. CRI-O 1.34 reports it
	// in no field of PodSandboxStatus or ListPodSandbox, only in the verbose
	// runtime spec.
	crioHandler = "io.kubernetes.cri-o.RuntimeHandler"
	// podUIDLabel is kubelet's label that tells pods apart.
	podUIDLabel = "io.kubernetes.pod.uid"
)

// runPodSandbox refuses a guest-pull pod that says of itself what only CRI-O may
// say, and what front and shim believe. Everything else is CRI-O's.
func (s *Server) runPodSandbox(c *call) error {
	req := new(cri.RunPodSandboxRequest)
	if err := c.decode(req); err != nil {
		return err
	}
	name := req.GetRuntimeHandler()
	if name == "" {
		name = s.Handlers.Default()
	}
	if h, ok := s.Handlers.Handler(name); ok && h.GuestPull {
		config := req.GetConfig()
		if err := refuseKeys("run pod sandbox "+config.GetMetadata().GetName(), config.GetAnnotations(), config.GetLabels(),
			crioHandler, annotations.CRIOSandboxID, annotations.CRIOContainerType, annotations.CRIOResolvPath, annotations.CRIOImageName); err != nil {
			return err
		}
	}
	return c.passOn()
}

// refuseKeys refuses a pod that sets one of the keys. CRI-O writes a pod's annotations
// and then its labels into the runtime spec of the sandbox, over its own.
func refuseKeys(op string, notes, labels map[string]string, keys ...string) error {
	for _, key := range keys {
		if _, forged := notes[key]; forged {
			return errdefs.Newf(errdefs.InvalidArgument, op, "the pod must not set the annotation %s", key)
		}
		if _, forged := labels[key]; forged {
			return errdefs.Newf(errdefs.InvalidArgument, op, "the pod must not set the label %s", key)
		}
	}
	return nil
}

// handlerNamed returns the handler a client named; the CRI wants unknown ones rejected.
func (s *Server) handlerNamed(name string) (Handler, error) {
	h, ok := s.Handlers.Handler(name)
	if !ok {
		return Handler{}, errdefs.Newf(errdefs.InvalidArgument, "find runtime handler",
			"CRI-O's configuration has no runtime handler %q", name)
	}
	return h, nil
}

// orDefault returns the handler with the name, or CRI-O's default for "".
func (s *Server) orDefault(name string) (Handler, error) {
	if name == "" {
		name = s.Handlers.Default()
	}
	return s.handlerNamed(name)
}

// sandboxHandler returns the runtime handler of a sandbox.
func (s *Server) sandboxHandler(ctx context.Context, id string) (Handler, error) {
	op := "find the runtime handler of sandbox " + id
	answer := new(cri.PodSandboxStatusResponse)
	request := &cri.PodSandboxStatusRequest{PodSandboxId: id, Verbose: true}
	if err := s.ask(ctx, cri.RuntimeService_PodSandboxStatus_FullMethodName, request, answer); err != nil {
		return Handler{}, err
	}
	if name := answer.GetStatus().GetRuntimeHandler(); name != "" {
		return s.handlerNamed(name)
	}
	// A pod that brings the key could claim another handler than it runs under, and
	// have its layers pulled to the host.
	if err := refuseKeys(op, answer.GetStatus().GetAnnotations(), answer.GetStatus().GetLabels(), crioHandler); err != nil {
		return Handler{}, err
	}
	var info struct {
		RuntimeSpec struct {
			Annotations map[string]string `json:"annotations"`
		} `json:"runtimeSpec"`
	}
	if err := json.Unmarshal([]byte(answer.GetInfo()["info"]), &info); err != nil {
		return Handler{}, errdefs.Newf(errdefs.Internal, op, "read CRI-O's verbose status: %w", err)
	}
	name, ok := info.RuntimeSpec.Annotations[crioHandler]
	if !ok {
		return Handler{}, errdefs.Newf(errdefs.Internal, op, "CRI-O's verbose status has no %s", crioHandler)
	}
	return s.orDefault(name)
}

// sandboxNamed returns the ID of the sandbox with the config's metadata; false
// when CRI-O has none.
func (s *Server) sandboxNamed(ctx context.Context, config *cri.PodSandboxConfig) (string, bool, error) {
	want := config.GetMetadata()
	request := new(cri.ListPodSandboxRequest)
	if uid := config.GetLabels()[podUIDLabel]; uid != "" && uid == want.GetUid() {
		request.Filter = &cri.PodSandboxFilter{LabelSelector: map[string]string{podUIDLabel: uid}}
	}
	answer := new(cri.ListPodSandboxResponse)
	if err := s.ask(ctx, cri.RuntimeService_ListPodSandbox_FullMethodName, request, answer); err != nil {
		return "", false, err
	}
	for _, sandbox := range answer.GetItems() {
		have := sandbox.GetMetadata()
		if have.GetName() == want.GetName() && have.GetNamespace() == want.GetNamespace() &&
			have.GetUid() == want.GetUid() && have.GetAttempt() == want.GetAttempt() {
			return sandbox.GetId(), true, nil
		}
	}
	return "", false, nil
}

// pullHandler decides whose a pull is (DESIGN section 4).
func (s *Server) pullHandler(ctx context.Context, req *cri.PullImageRequest) (Handler, error) {
	spec := req.GetImage()
	if name := spec.GetRuntimeHandler(); name != "" {
		return s.handlerNamed(name)
	}
	hint := spec.GetAnnotations()[annotations.RuntimeHandler]
	if req.GetSandboxConfig().GetMetadata().GetName() != "" {
		id, found, err := s.sandboxNamed(ctx, req.GetSandboxConfig())
		if err != nil {
			return Handler{}, err
		}
		if found {
			return s.sandboxHandler(ctx, id)
		}
		if hint == "" {
			// The pod may be gone by now. Guessing could pull layers to the host
			// that must never be there.
			return Handler{}, errdefs.Newf(errdefs.NotFound, "pull "+spec.GetImage(),
				"the sandbox that sandbox_config names does not exist, so its runtime handler is not known: "+
					"run the sandbox first, or set image.runtime_handler")
		}
	}
	if hint != "" {
		return s.handlerNamed(hint)
	}
	return s.orDefault(s.config.DefaultHandler)
}

// viewer returns the handler whose images an image query is about; false when the
// client does not say.
func (s *Server) viewer(spec *cri.ImageSpec) (Handler, bool, error) {
	name := spec.GetRuntimeHandler()
	if name == "" {
		name = spec.GetAnnotations()[annotations.RuntimeHandler]
	}
	if name == "" && len(spec.GetAnnotations()) > 0 {
		name = s.config.AssumeHandler
	}
	if name == "" {
		return Handler{}, false, nil
	}
	h, err := s.handlerNamed(name)
	return h, err == nil, err
}
