package front

import (
	"context"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// pullImage pulls the metadata of an image for a guest-pull handler and leaves
// every other pull to CRI-O. It answers with the image ID, which is also what
// ImageStatus returns (KEP-2535).
func (s *Server) pullImage(c *call) error {
	req := new(cri.PullImageRequest)
	if err := c.decode(req); err != nil {
		return err
	}
	name := req.GetImage().GetImage()
	if name == "" || len(s.Handlers.GuestPull()) == 0 {
		return c.passOn()
	}
	h, err := s.pullHandler(c.ctx(), req)
	if err != nil {
		return err
	}
	if !h.GuestPull {
		return c.passOn()
	}
	log := s.Log.With("image", name, "handler", h.Name,
		"namespace", req.GetSandboxConfig().GetMetadata().GetNamespace(), "pod", req.GetSandboxConfig().GetMetadata().GetName())
	start := time.Now()
	result, err := s.pull(c.ctx(), req)
	if err != nil {
		log.Warn("pull image metadata", "error", errdefs.ToGRPC(err), "kind", errdefs.KindOf(err).String(), "took", time.Since(start))
		return err
	}
	log.Info("pulled image metadata", "image_id", result.Record.ImageID().String(),
		"pinned", result.Pulled.Pinned().String(), "took", time.Since(start))
	return c.answer(&cri.PullImageResponse{ImageRef: result.Record.ImageID().String()})
}

// pull waits for a free slot, as long as the client does, and pulls.
func (s *Server) pull(ctx context.Context, req *cri.PullImageRequest) (manifestonly.Result, error) {
	select {
	case s.pulls <- struct{}{}:
	case <-ctx.Done():
		return manifestonly.Result{}, ctx.Err()
	}
	defer func() { <-s.pulls }()
	ctx, cancel := context.WithTimeout(ctx, s.config.PullTimeout)
	defer cancel()
	auth := req.GetAuth()
	return s.Puller.Pull(ctx, manifestonly.Request{
		Name: req.GetImage().GetImage(),
		Credentials: manifestonly.Credentials{
			Username:      auth.GetUsername(),
			Password:      auth.GetPassword(),
			Auth:          auth.GetAuth(),
			IdentityToken: auth.GetIdentityToken(),
			RegistryToken: auth.GetRegistryToken(),
		},
		Namespace: req.GetSandboxConfig().GetMetadata().GetNamespace(),
	})
}
