package bundles

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containers/storage"
	"github.com/containers/storage/types"
	"github.com/opencontainers/go-digest"
	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// templateName is the name of the template in the container directory, and of what is
// made from it in the run directory.
const templateName = "config.json"

// Create makes a container: its record and, in its directory, spec as the template of
// its config.json. It returns the container as it is stored. All of it is made or
// nothing; what a killed Create has made is never seen, and the next Create or
// [Store.Sweep] removes it.
//
// The times and the status that are zero are set, and Args are cut at [MaxArgs]. A
// member of a pod is made after the sandbox, and gets the sandbox's Pod whatever its own
// says beyond the ID.
//
// errdefs.InUse with [ErrExists]: the name, the ID or the pod's name is taken.
// errdefs.NotFound: there is no such image, or no such pod. errdefs.InvalidArgument:
// the container or the spec cannot be stored, also because it is too long.
func (s *Store) Create(ctx context.Context, c Container, spec *rspec.Spec) (Container, error) {
	op := "create container " + c.Name
	template, err := encodeSpec(spec)
	if err == nil && spec == nil {
		err = errors.New("no spec")
	}
	if err != nil {
		return Container{}, errdefs.New(errdefs.InvalidArgument, op, err)
	}
	complete(&c, time.Now())
	if err := c.valid(); err != nil {
		return Container{}, errdefs.New(errdefs.InvalidArgument, op, err)
	}
	release, err := s.lock.Acquire(ctx)
	if err != nil {
		return Container{}, err
	}
	defer release()
	// What another Create left may have the name. If it cannot be removed, that is
	// said when the name turns out to be taken.
	_, _ = s.settleAll(ctx)
	if err := s.joinPod(op, &c); err != nil {
		return Container{}, err
	}
	text, err := stored{
		Version: version, Template: digest.FromBytes(template), TemplateSize: int64(len(template)), Container: c,
	}.encode()
	if err != nil {
		return Container{}, errdefs.New(errdefs.InvalidArgument, op, err)
	}
	if s.store.Exists(c.ID) { // as an image or a layer it would be hit by what is meant for the container
		return Container{}, exists(op, "the ID "+c.ID)
	}
	return c, s.make(op, &c, text, template)
}

// complete fills in what the caller may leave out.
func complete(c *Container, now time.Time) {
	now = now.UTC()
	if c.Created.IsZero() {
		c.Created = now
	}
	if c.Sandbox && c.Pod.Created.IsZero() {
		c.Pod.Created = c.Created
	}
	if c.State.Status == "" {
		c.State.Status = StatusCreated
	}
	for _, at := range []*time.Time{&c.Created, &c.Pod.Created, &c.State.StartedAt, &c.State.FinishedAt} {
		*at = at.UTC().Round(0) // as it is read again
	}
	c.Args = shorten(c.Args)
}

// joinPod gives a member the pod that the sandbox has. The caller holds the lock, so the
// sandbox stays until the member is there.
func (s *Store) joinPod(op string, c *Container) error {
	if c.Sandbox {
		return nil
	}
	rec, err := s.find(op, c.Pod.ID)
	if err != nil && !errdefs.Is(err, errdefs.NotFound) {
		return err
	}
	if err == nil {
		st, err := decode(rec)
		if err != nil {
			return errdefs.New(errdefs.Internal, op, fmt.Errorf("the pod's sandbox %s: %w", rec.ID, err))
		}
		if st.Container.Sandbox {
			c.Pod = st.Container.Pod
			return nil
		}
	}
	return errdefs.Newf(errdefs.NotFound, op, "there is no pod %s", c.Pod.ID)
}

// make writes the container between its mark and the mark's removal. The caller holds
// the lock.
func (s *Store) make(op string, c *Container, text string, template []byte) (err error) {
	if err := s.mark(c.ID); err != nil {
		return errdefs.New(errdefs.Internal, op, err)
	}
	defer func() {
		if err != nil {
			// If this fails too, the mark stays for Sweep.
			err = errors.Join(err, s.settle(c.ID))
		}
	}()
	opts := &storage.ContainerOptions{
		IDMappingOptions: types.IDMappingOptions{HostUIDMapping: true, HostGIDMapping: true},
		// Nothing is ever mounted from its layer, so it needs no label.
		LabelOpts: []string{"disable"},
	}
	rec, err := s.store.CreateContainer(c.ID, c.storedNames(), c.Image.RecordID.String(), layerID(c.ID), text, opts)
	if err != nil {
		return mapped(op, err)
	}
	if rec.ImageID != c.Image.RecordID.String() { // it was taken for a name or a prefix
		return errdefs.Newf(errdefs.NotFound, op, "there is no image record %s", c.Image.RecordID)
	}
	if err := s.store.SetContainerDirectoryFile(c.ID, templateName, template); err != nil {
		return mapped(op, err)
	}
	if err := s.unmark(c.ID); err != nil {
		return errdefs.New(errdefs.Internal, op, err)
	}
	return nil
}

// layerID is the ID of the layer of a container: containers/storage makes one for every
// container. It is known before it is made, so that Sweep finds one that has no container.
func layerID(id string) string {
	return digest.FromString("husk container layer v1\n" + id + "\n").Encoded()
}

// Finish makes the bundle of a container, its run directory: the template with
// root.path set to the bundle's own empty rootfs, then changed by change, which may be
// nil, as config.json. It may be called again; what is in the rootfs stays. An error
// leaves the config.json that was there. change must not call the store.
func (s *Store) Finish(ctx context.Context, id string, change func(*rspec.Spec) error) (bundle string, err error) {
	op := "finish the bundle of container " + id
	spec, err := s.template(ctx, op, id)
	if err != nil {
		return "", err
	}
	if bundle, err = s.RunDir(id); err != nil {
		return "", err
	}
	rootfs := filepath.Join(bundle, "rootfs")
	if spec.Root == nil {
		spec.Root = &rspec.Root{}
	}
	spec.Root.Path = rootfs
	if change != nil {
		if err := change(spec); err != nil {
			return "", err
		}
	}
	config, err := encodeSpec(spec)
	if err != nil {
		return "", errdefs.New(errdefs.InvalidArgument, op, err)
	}
	release, err := s.lock.Acquire(ctx)
	if err != nil {
		return "", err
	}
	defer release()
	if _, err := s.find(op, id); err != nil { // removed meanwhile: make nothing that stays
		return "", err
	}
	if err := os.MkdirAll(rootfs, 0o755); err != nil {
		return "", errdefs.New(errdefs.Internal, op, err)
	}
	if err := s.store.SetContainerRunDirectoryFile(id, templateName, config); err != nil {
		return "", mapped(op, err)
	}
	return bundle, nil
}
