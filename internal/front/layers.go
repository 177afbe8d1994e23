package front

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/husk-cri/husk/internal/sandboxes"
	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/registryauth"
)

// progressEvery is how often the log says how far a pull of layers is.
const progressEvery = 10 * time.Second

// pullLayers has the pod pull the layers of an image that was fetched, with the
// credentials of the request, and compares what it pulled with that. A pod whose shim is
// too old for it pulls when a container is created.
func (s *Server) pullLayers(c *call, now *live, p *pod, img manifestonly.Image, with registryauth.Credentials) (err error) {
	id, pinned := p.status.GetId(), img.Pulled.Pinned()
	c.note("sandbox", id)
	ctx, cancel := context.WithTimeout(c.ctx(), now.LayerPullTimeout)
	defer cancel()
	far := &distance{img: img}
	start, done, outcome := time.Now(), s.Observer.LayersStarted(), outcomeOK
	log := s.Log.With("image", bounded(pinned.String()), "sandbox", id,
		"namespace", bounded(p.status.GetMetadata().GetNamespace()), "pod", bounded(p.status.GetMetadata().GetName()))
	log.InfoContext(ctx, "pulling layers in the pod", "layers", img.Layers, "bytes", img.LayerBytes)
	stopped := make(chan struct{})
	var telling sync.WaitGroup
	telling.Go(func() { far.tell(ctx, log, stopped) })
	defer func() {
		close(stopped)
		telling.Wait()
		done()
		if err != nil {
			outcome = kindOf(err).String()
		}
		s.Observer.LayersPulled(p.handler.Name, outcome, time.Since(start), far.now().BytesDone)
	}()
	got, err := s.Layers.Pull(ctx, sandboxes.PullRequest{Sandbox: id, Reference: pinned, Credentials: with, Progress: far.set})
	if errors.Is(err, sandboxes.ErrOldShim) {
		log.WarnContext(ctx, "the pod's shim is older than this husk: its layers are pulled when the container is created")
		outcome = kindOf(err).String()
		return nil
	}
	if err != nil && ctx.Err() != nil && c.ctx().Err() == nil {
		return errdefs.Newf(errdefs.DeadlineExceeded, "pull the layers of "+pinned.String()+" in sandbox "+id,
			"layer_pull_timeout (%s) is over: %s", now.LayerPullTimeout, far)
	}
	if err == nil {
		err = far.same(got)
	}
	if err != nil {
		return err
	}
	c.did = "pulled image"
	c.attrs = append(c.attrs, slog.Int64("layer_bytes", far.now().BytesDone), slog.Duration("layers_took", time.Since(start)))
	return nil
}

// distance is how far a pull of layers is. What the pod says of it is held against the
// manifest, which was verified.
type distance struct {
	img manifestonly.Image

	mu sync.Mutex
	at sandboxes.Progress
}

func (d *distance) set(p sandboxes.Progress) {
	p.Layers, p.Bytes = min(p.Layers, d.img.Layers), min(p.Bytes, d.img.LayerBytes)
	p.LayersDone, p.BytesDone = min(p.LayersDone, p.Layers), min(p.BytesDone, p.Bytes)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at = p
}

func (d *distance) now() sandboxes.Progress {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.at
}

func (d *distance) String() string {
	at := d.now()
	return fmt.Sprintf("%d of %d layers and %d of %d bytes were there", at.LayersDone, at.Layers, at.BytesDone, at.Bytes)
}

// tell writes how far it is to the log, every while until stopped is closed.
func (d *distance) tell(ctx context.Context, log *slog.Logger, stopped <-chan struct{}) {
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for start := time.Now(); ; {
		select {
		case <-stopped:
			return
		case <-tick.C:
		}
		at := d.now()
		log.InfoContext(ctx, "still pulling layers in the pod", "layers_done", at.LayersDone, "layers", at.Layers,
			"bytes_done", at.BytesDone, "bytes", at.Bytes, "took", time.Since(start).Round(time.Second))
	}
}

// same refuses another image than the one that was fetched: kubelet is told its ID.
func (d *distance) same(got sandboxes.Image) error {
	op := "pull the layers of " + d.img.Pulled.Pinned().String()
	switch {
	case got.Manifest != d.img.Manifest.Digest:
		return errdefs.Newf(errdefs.DigestMismatch, op, "the pod has the manifest %s, and the host %s", got.Manifest, d.img.Manifest.Digest)
	case got.ID != d.img.ConfigDigest.ImageID():
		return errdefs.Newf(errdefs.DigestMismatch, op, "the pod has the image ID %s, and the host %s", got.ID, d.img.ConfigDigest.ImageID())
	}
	return nil
}
