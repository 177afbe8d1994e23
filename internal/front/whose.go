package front

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/pkg/annotations"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// handlerNamed returns the handler a client named; the CRI wants unknown ones rejected.
func (l *live) handlerNamed(name string) (Handler, error) {
	h, ok := l.Handlers.Handler(name)
	if !ok {
		return Handler{}, errdefs.Newf(errdefs.InvalidArgument, "find runtime handler",
			"CRI-O's configuration has no runtime handler %q", bounded(name))
	}
	return h, nil
}

// orDefault returns the handler with the name, or CRI-O's default for "".
func (l *live) orDefault(name string) (Handler, error) {
	if name == "" {
		name = l.Handlers.Default()
	}
	return l.handlerNamed(name)
}

// guestPulls reports whether a pod of this node may pull in the guest. A record says so
// too: it outlives a handler that has left crio.conf while its pods run, whose pulls
// must not end in layers on the host.
func (s *Server) guestPulls(ctx context.Context, now *live) (bool, error) {
	if len(now.Handlers.GuestPull()) > 0 {
		return true, nil
	}
	records, err := s.Records.List(ctx)
	return len(records) > 0, err
}

// pullHandler decides whose a pull is (DESIGN section 4). It returns the pod as well
// where it had to ask for it.
func (s *Server) pullHandler(ctx context.Context, now *live, req *cri.PullImageRequest) (Handler, *pod, error) {
	spec := req.GetImage()
	if name := spec.GetRuntimeHandler(); name != "" {
		h, err := now.handlerNamed(name)
		return h, nil, err
	}
	ofPod := req.GetSandboxConfig().GetMetadata().GetName() != ""
	if ofPod {
		p, err := s.podOf(ctx, now, req.GetSandboxConfig())
		if err != nil {
			return Handler{}, nil, err
		}
		if p != nil {
			return p.handler, p, nil
		}
	}
	if hint := spec.GetAnnotations()[annotations.RuntimeHandler]; hint != "" {
		h, err := now.handlerNamed(hint)
		if err != nil || h.GuestPull || !ofPod {
			return h, nil, err
		}
	}
	if ofPod {
		// The pod may be gone by now. Guessing, or believing what it says of itself,
		// could pull layers to the host that must never be there.
		return Handler{}, nil, errdefs.Newf(errdefs.NotFound, "pull "+spec.GetImage(),
			"the sandbox that sandbox_config names does not exist, so its runtime handler is not known: "+
				"run the sandbox first, or set image.runtime_handler")
	}
	h, err := now.orDefault(now.DefaultHandler)
	return h, nil, err
}

// placeOf decides where a pull for the handler runs; false for where Husk is. p is the
// pod, if it is known already: CRI-O is asked for it once.
func (s *Server) placeOf(ctx context.Context, now *live, h Handler, p *pod, req *cri.PullImageRequest) (_ Place, elsewhere bool, err error) {
	if !h.PullInSandbox {
		return Place{CgroupParent: req.GetSandboxConfig().GetLinux().GetCgroupParent()}, now.SeparatePull, nil
	}
	if p == nil {
		if p, err = s.podOf(ctx, now, req.GetSandboxConfig()); err != nil {
			return Place{}, false, err
		}
	}
	if p == nil {
		// Never from the host's network instead.
		return Place{}, false, errdefs.Newf(errdefs.NotFound, "pull "+req.GetImage().GetImage(),
			"runtime handler %q pulls in the pod's network, and the request names no sandbox that exists", h.Name)
	}
	place, err := p.place()
	return place, true, err
}

// viewer returns the handler whose images an image query is about; false when the
// client does not say.
func (s *Server) viewer(spec *cri.ImageSpec) (Handler, bool, error) {
	now, name := s.live.Load(), spec.GetRuntimeHandler()
	if name == "" {
		name = spec.GetAnnotations()[annotations.RuntimeHandler]
	}
	if name == "" && len(spec.GetAnnotations()) > 0 {
		name = now.AssumeHandler
	}
	if name == "" {
		return Handler{}, false, nil
	}
	h, err := now.handlerNamed(name)
	return h, err == nil, err
}
