package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/log"
	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/husk-cri/husk/internal/sandbox"
	"github.com/husk-cri/husk/internal/sandbox/layers"
	"github.com/husk-cri/husk/internal/shim/pod"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
	"github.com/husk-cri/husk/pkg/layerpull"
	"github.com/husk-cri/husk/pkg/registryauth"
)

// crioMetadata is CRI-O's annotation with the pod's metadata, as the CRI has it.
const crioMetadata = "io.kubernetes.cri-o.Metadata"

// maxName bounds what is repeated of a pod's name: no name of Kubernetes is longer.
const maxName = 253

// podIdentity is a pod as Kubernetes knows it. Its JSON is that of CRI-O's annotation.
type podIdentity struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	UID       string `json:"uid"`
}

// identityOf returns whose sandbox the spec is of, as far as CRI-O has written it down.
func identityOf(spec *rspec.Spec) podIdentity {
	var identity podIdentity
	if json.Unmarshal([]byte(spec.Annotations[crioMetadata]), &identity) != nil {
		return podIdentity{}
	}
	for _, name := range []*string{&identity.Name, &identity.Namespace, &identity.UID} {
		*name = strings.ToValidUTF8((*name)[:min(len(*name), maxName)], "") // a rune may have been cut
	}
	return identity
}

// settleSandbox lets images be pulled in the pod's sandbox, which was just created, until
// that exits: its network goes with it.
func (s *service) settleSandbox(ctx context.Context, id string, spec *rspec.Spec, cfg Config) {
	place, err := sandbox.PlaceOf(spec)
	if err != nil {
		// A container of such a pod has no place either, and its Create says so.
		log.G(ctx).WithError(err).Warn("no image can be pulled in the pod's sandbox")
		return
	}
	s.images.settle(podSandbox{place: place, cfg: cfg, identity: identityOf(spec)})
	ctx = context.WithoutCancel(ctx)
	go func() {
		_, err := s.TaskService.Wait(ctx, &taskapi.WaitRequest{ID: id})
		s.images.stop(errdefs.New(errdefs.Unavailable, "the sandbox of pod "+s.pod.ID()+" has ended", err))
	}()
}

// pull pulls an image that a container is being created from, or that is mounted
// into it. The container is on the image until it is deleted.
func (s *service) pull(ctx context.Context, id, ref string, spec *rspec.Spec, cfg Config) (layers.Image, error) {
	place, err := sandbox.PlaceOf(spec)
	if err != nil {
		return layers.Image{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(cfg.PullTimeout))
	defer cancel()
	req := layers.Request{Name: id, Place: place, Pull: layers.PullRequest{Reference: ref, Timeout: time.Duration(cfg.PullTimeout)}}
	if spec.Process.OOMScoreAdj != nil {
		req.OOMScoreAdj = *spec.Process.OOMScoreAdj
	}
	return s.fetch(ctx, &pull{container: id}, cfg, req)
}

// pullForPod pulls an image for the pod, before a container needs it. The credentials
// are for this pull alone.
func (s *service) pullForPod(ctx context.Context, ref imageref.Reference, creds registryauth.Credentials, p *pull) (layers.Image, error) {
	known := s.images.known()
	if known == nil {
		return layers.Image{}, errdefs.Newf(errdefs.Unavailable, "pull "+ref.String(), "pod %s has no sandbox yet", s.pod.ID())
	}
	return s.fetch(ctx, p, known.cfg, layers.Request{
		Place:       known.place,
		OOMScoreAdj: pullOOMScore,
		Pull:        layers.PullRequest{Reference: ref.String(), Credentials: registryauth.Open(creds)},
	})
}

// fetch runs a pull in a child, when it is its turn. A child that fails or is killed
// leaves complete layers and nothing else.
func (s *service) fetch(ctx context.Context, p *pull, cfg Config, req layers.Request) (layers.Image, error) {
	ctx, abort := context.WithCancelCause(ctx)
	defer abort(nil)
	op := "pull " + req.Pull.Reference
	p.abort, p.reference, p.started = abort, req.Pull.Reference, time.Now()
	if err := s.images.enter(ctx, p); err != nil {
		return layers.Image{}, errdefs.New(errdefs.KindOf(err), op, err)
	}
	defer s.images.leave(p)
	if err := s.store.open(cfg, req.Place); err != nil {
		return layers.Image{}, errdefs.New(errdefs.KindOf(err), op, err)
	}
	if p.container == "" {
		req.Name = pod.PullName(s.pod.ID(), p.slot)
	}
	req.Progress = func(progress layerpull.Progress) { s.images.tell(p, progress) }
	configure(&req.Pull, cfg, s.store)
	begin := time.Now()
	image, err := s.puller.Run(ctx, req)
	logger := log.G(ctx).WithField("image", req.Pull.Reference)
	if p.container != "" {
		logger = logger.WithField("container", p.container)
	}
	if err != nil {
		// A child that was killed could not clean up, and what it left is the pod's memory.
		if _, cleanErr := s.layers(); cleanErr != nil {
			logger.WithError(cleanErr).Error("clean up after a failed pull")
		}
		return layers.Image{}, err
	}
	logger.Infof("pulled in %s", time.Since(begin).Round(time.Millisecond))
	if p.container == "" {
		return image, nil
	}
	return image, s.note(p.container, p.reference, image)
}

// configure says in a request what the shim's configuration and the pod's store do.
func configure(req *layers.PullRequest, cfg Config, st *store) {
	req.StoreDir, req.TempDir, req.StoreBytes = st.images(), st.temp(), st.limit()
	req.AuthFile, req.CertsDir = cfg.AuthFile, cfg.CertsDir
	req.KeysDir, req.KeyProviders = cfg.KeysDir, cfg.KeyProviders
	req.PolicyPath, req.Rules, req.RegistriesD = cfg.Policy, cfg.ImageRules, cfg.RegistriesD
	req.RegistriesConf, req.RegistriesConfDir = cfg.RegistriesConf, cfg.RegistriesConfDir
}

// note remembers that a container is on an image. No image is removed before that,
// because its pull is still at work.
func (s *service) note(id, ref string, image layers.Image) error {
	on := pod.Image{Reference: ref, ManifestDigest: image.ManifestDigest, ImageID: image.ImageID, PulledAt: image.PulledAt}
	s.mu.Lock()
	if c := s.containers[id]; c != nil {
		c.images = append(c.images, on)
	}
	s.mu.Unlock()
	if _, err := s.pod.Update(id, func(r pod.Record) pod.Record { return r.On(on) }); err != nil {
		return errdefs.New(errdefs.Internal, "record what container "+id+" is on", err)
	}
	return nil
}

// users returns, by reference, the containers that are on an image, in order.
func (s *service) users() map[string][]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	users := map[string][]string{}
	for id, c := range s.containers {
		for _, image := range c.images {
			users[image.Reference] = append(users[image.Reference], id)
		}
	}
	for _, ids := range users {
		slices.Sort(ids)
	}
	return users
}

var errNoStore = errors.New("the pod has no store")

// layers opens the store of layers, which the caller may use while it holds
// images.store or is a pull at work: to open it when it is not mounted would make
// directories that stay. errNoStore says that it is not.
func (s *service) layers() (*layerpull.Store, error) {
	if !s.store.isOpen() {
		return nil, errNoStore
	}
	return layerpull.OpenStore(s.store.images())
}

func (s *store) isOpen() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.kind != ""
}

// end ends the pulls and removes the pod's state as the shim ends.
func (s *service) end(ctx context.Context) error {
	err := s.images.end(ctx, errdefs.New(errdefs.Unavailable, "the shim of pod "+s.pod.ID()+" ends", nil))
	if err != nil {
		err = fmt.Errorf("end the pulls of pod %s: %w", s.pod.ID(), err)
	}
	s.images.store.Lock()
	defer s.images.store.Unlock()
	return errors.Join(err, end(s.pod, s.store))
}
