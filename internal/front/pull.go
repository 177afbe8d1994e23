package front

import (
	"context"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
	"github.com/husk-cri/husk/pkg/registryauth"
)

// outcomeOK is what an observer is told of a pull that did not fail.
const outcomeOK = "ok"

// pullImage pulls the metadata of an image for a guest-pull handler and leaves
// every other pull to CRI-O. It answers with the image ID, which is also what
// ImageStatus returns (KEP-2535).
func (s *Server) pullImage(c *call) error {
	req := new(cri.PullImageRequest)
	if err := c.decode(req); err != nil {
		return err
	}
	name := req.GetImage().GetImage()
	c.note("image", name)
	c.notePod(req.GetSandboxConfig())
	if name == "" {
		return c.passOn()
	}
	now := s.live.Load()
	if req.GetImage().GetRuntimeHandler() == "" {
		// Without guest pulls no pod needs to be asked for. A handler that is named is
		// looked up all the same: CRI-O would ignore one that it has not.
		possible, err := s.guestPulls(c.ctx(), now)
		if err != nil {
			return err
		}
		if !possible {
			return c.passOn()
		}
	}
	h, p, err := s.pullHandler(c.ctx(), now, req)
	if err != nil {
		return err
	}
	c.note("handler", h.Name)
	if !h.GuestPull {
		return c.passOn()
	}
	c.did = "pulled image metadata"
	result, err := s.pullFor(c, now, h, p, req)
	if err != nil {
		return err
	}
	c.noteImage(result.Record, result.Pulled)
	return c.answer(&cri.PullImageResponse{ImageRef: result.Record.ImageID().String()})
}

// pullFor pulls for a guest-pull handler: the metadata and, where the pod's shim does
// that, the layers. The record is committed last: an image that is refused, or whose
// layers cannot be pulled, leaves none, whenever that ends, or kubelet would take it for
// present and never pull it with its credentials again.
func (s *Server) pullFor(c *call, now *live, h Handler, p *pod, req *cri.PullImageRequest) (manifestonly.Result, error) {
	ctx, layers := c.ctx(), h.eager() && s.Layers != nil
	if layers && p == nil { // the request named the handler
		var err error
		if p, err = s.podOf(ctx, now, req.GetSandboxConfig()); err != nil {
			return manifestonly.Result{}, err
		}
	}
	layers = layers && p != nil && p.handler.eager()
	if !layers && !mayRefuseUser(h, req.GetSandboxConfig()) {
		return s.metadata(ctx, now, h, p, req, s.pullAt)
	}
	var img manifestonly.Image
	fetched, err := s.metadata(ctx, now, h, p, req, func(ctx context.Context, at *Place, order manifestonly.Request) (manifestonly.Result, error) {
		var stats manifestonly.Stats
		var err error
		if img, stats, err = s.fetchAt(ctx, at, order); err == nil {
			err = refuseUser(h, req, img)
		}
		return manifestonly.Result{Record: img.Record(), Pulled: img.Pulled, Stats: stats}, err
	})
	if err != nil {
		return manifestonly.Result{}, err
	}
	if layers {
		if err := s.pullLayers(c, now, p, img, pullRequest(h, req).Credentials); err != nil {
			return manifestonly.Result{}, err
		}
	}
	img.Pulled.PulledAt = time.Now().UTC().Round(0) // record_ttl counts from the end of a long pull
	ctx, cancel := context.WithTimeout(ctx, now.PullTimeout)
	defer cancel()
	record, err := s.Puller.Commit(ctx, img)
	return manifestonly.Result{Record: record, Pulled: img.Pulled, Stats: fetched.Stats}, err
}

// metadata gets an image's metadata by get, within the bounds of such pulls, and tells the
// observer. The slot is free again before any layer is asked for.
func (s *Server) metadata(ctx context.Context, now *live, h Handler, p *pod, req *cri.PullImageRequest,
	get func(context.Context, *Place, manifestonly.Request) (manifestonly.Result, error),
) (result manifestonly.Result, err error) {
	start, done := time.Now(), s.Observer.PullStarted()
	defer func() {
		done()
		outcome := outcomeOK
		if err != nil {
			// The registry was asked all the same.
			result, outcome = manifestonly.Result{Stats: result.Stats}, kindOf(err).String()
		}
		s.Observer.Pulled(h.Name, outcome, time.Since(start), result)
	}()
	place, elsewhere, err := s.placeOf(ctx, now, h, p, req)
	if err != nil {
		return result, err
	}
	order, at := pullRequest(h, req), (*Place)(nil)
	if elsewhere {
		at = &place
		if s.Placed == nil {
			return result, errdefs.Newf(errdefs.Unsupported, "pull "+order.Name, "this husk cannot pull in a pod's network or cgroup")
		}
	}
	select { // for as long as the client waits
	case now.pulls <- struct{}{}:
	case <-ctx.Done():
		return result, ctx.Err()
	}
	defer func() { <-now.pulls }()
	ctx, cancel := context.WithTimeout(ctx, now.PullTimeout)
	defer cancel()
	return get(ctx, at, order)
}

// pullAt pulls and commits; at is nil for where Husk is.
func (s *Server) pullAt(ctx context.Context, at *Place, order manifestonly.Request) (manifestonly.Result, error) {
	if at == nil {
		return s.Puller.Pull(ctx, order)
	}
	return s.Placed.PullAt(ctx, *at, order)
}

// fetchAt is pullAt without the commit.
func (s *Server) fetchAt(ctx context.Context, at *Place, order manifestonly.Request) (manifestonly.Image, manifestonly.Stats, error) {
	if at == nil {
		return s.Puller.Fetch(ctx, order)
	}
	return s.Placed.FetchAt(ctx, *at, order)
}

// pullRequest is a CRI request as package manifestonly takes it.
func pullRequest(h Handler, req *cri.PullImageRequest) manifestonly.Request {
	auth := req.GetAuth()
	return manifestonly.Request{
		Name: req.GetImage().GetImage(),
		Credentials: registryauth.Credentials{
			Username:      auth.GetUsername(),
			Password:      auth.GetPassword(),
			Auth:          auth.GetAuth(),
			IdentityToken: auth.GetIdentityToken(),
			RegistryToken: auth.GetRegistryToken(),
		},
		Namespace: req.GetSandboxConfig().GetMetadata().GetNamespace(),
		Limits:    manifestonly.Limits{MaxImageBytes: h.MaxImageBytes, MaxLayers: h.MaxLayers},
	}
}

// admit refuses a record that the handler's limits do not allow. A pull for the
// handler would have been refused; another handler's pull, or CRI-O's, was not.
func admit(h Handler, rec imageref.Record) error {
	op := "create container of image " + rec.ImageID().String()
	if limit := h.MaxLayers; limit > 0 && rec.Layers > limit {
		return errdefs.Newf(errdefs.TooLarge, op, "it has %d layers, and runtime handler %q allows %d", rec.Layers, h.Name, limit)
	}
	if limit := h.MaxImageBytes; limit > 0 && rec.LayerBytes > limit {
		return errdefs.Newf(errdefs.TooLarge, op, "its layers have %d bytes, and runtime handler %q allows %d", rec.LayerBytes, h.Name, limit)
	}
	return nil
}
