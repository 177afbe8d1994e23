package front

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/pkg/annotations"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// handlerNamed returns the handler a client named; the CRI wants unknown ones rejected.
func (s *Server) handlerNamed(name string) (Handler, error) {
	h, ok := s.Handlers.Handler(name)
	if !ok {
		return Handler{}, errdefs.Newf(errdefs.InvalidArgument, "find runtime handler",
			"CRI-O's configuration has no runtime handler %q", bounded(name))
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

// pullHandler decides whose a pull is (DESIGN section 4). It returns the pod as well
// where it had to ask for it.
func (s *Server) pullHandler(ctx context.Context, req *cri.PullImageRequest) (Handler, *pod, error) {
	spec := req.GetImage()
	if name := spec.GetRuntimeHandler(); name != "" {
		h, err := s.handlerNamed(name)
		return h, nil, err
	}
	hint := spec.GetAnnotations()[annotations.RuntimeHandler]
	if req.GetSandboxConfig().GetMetadata().GetName() != "" {
		p, err := s.podOf(ctx, req.GetSandboxConfig())
		if err != nil {
			return Handler{}, nil, err
		}
		if p != nil {
			return p.handler, p, nil
		}
		if hint == "" {
			// The pod may be gone by now. Guessing could pull layers to the host
			// that must never be there.
			return Handler{}, nil, errdefs.Newf(errdefs.NotFound, "pull "+spec.GetImage(),
				"the sandbox that sandbox_config names does not exist, so its runtime handler is not known: "+
					"run the sandbox first, or set image.runtime_handler")
		}
	}
	if hint != "" {
		h, err := s.handlerNamed(hint)
		return h, nil, err
	}
	h, err := s.orDefault(s.live.Load().DefaultHandler)
	return h, nil, err
}

// placeOf decides where a pull for the handler runs; false for where Husk is. p is the
// pod, if it is known already: CRI-O is asked for it once.
func (s *Server) placeOf(ctx context.Context, h Handler, p *pod, req *cri.PullImageRequest) (_ Place, elsewhere bool, err error) {
	if !h.PullInSandbox {
		return Place{CgroupParent: req.GetSandboxConfig().GetLinux().GetCgroupParent()}, s.live.Load().SeparatePull, nil
	}
	if p == nil {
		if p, err = s.podOf(ctx, req.GetSandboxConfig()); err != nil {
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
	name := spec.GetRuntimeHandler()
	if name == "" {
		name = spec.GetAnnotations()[annotations.RuntimeHandler]
	}
	if name == "" && len(spec.GetAnnotations()) > 0 {
		name = s.live.Load().AssumeHandler
	}
	if name == "" {
		return Handler{}, false, nil
	}
	h, err := s.handlerNamed(name)
	return h, err == nil, err
}
