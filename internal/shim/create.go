package shim

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/namespaces"
	runtimeoptions "github.com/containerd/containerd/pkg/runtimeoptions/v1"
	"github.com/containerd/containerd/protobuf"
	ptypes "github.com/containerd/containerd/protobuf/types"
	"github.com/containerd/log"
	"github.com/containerd/typeurl/v2"
	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/husk-cri/husk/bundlegen"
	"github.com/husk-cri/husk/internal/sandbox/layers"
	"github.com/husk-cri/husk/internal/shim/pod"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// undo is what has been done and must be taken back if the rest fails.
type undo []func() error

func (u *undo) add(f func() error) { *u = append(*u, f) }

// run takes everything back, the last first.
func (u undo) run(ctx context.Context) {
	for i := len(u) - 1; i >= 0; i-- {
		if err := u[i](); err != nil {
			log.G(ctx).WithError(err).Error("clean up after a failed create")
		}
	}
}

func (s *service) create(ctx context.Context, req *taskapi.CreateTaskRequest, c *container) (_ *taskapi.CreateTaskResponse, retErr error) {
	if req.Checkpoint != "" {
		return nil, errdefs.New(errdefs.Unsupported, "restore container "+req.ID+" from a checkpoint", nil)
	}
	cfg, err := configOf(req.Options)
	if err != nil {
		return nil, err
	}
	spec, err := readSpec(req.Bundle)
	if err != nil {
		return nil, err
	}
	c.sandbox = isSandbox(spec)
	if err := limitOOMScore(spec); err != nil {
		return nil, err
	}
	if err := s.runtimes.fit(ctx, cfg.Runtime, spec); err != nil {
		return nil, err
	}
	var done undo
	defer func() {
		if retErr != nil {
			done.run(ctx)
		}
	}()
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, err
	}
	record := newRecord(req, spec, cfg, ns)
	// Before anything else, so that whoever cleans up after a killed shim knows of it.
	if err := s.pod.Put(record); err != nil {
		return nil, err
	}
	done.add(func() error { return s.pod.Drop(req.ID) })
	if !c.sandbox {
		identity, err := s.prepare(ctx, req, spec, cfg, &done)
		if err != nil {
			return nil, err
		}
		c.identity = &identity
	}
	if err := writeSpec(req.Bundle, spec); err != nil {
		return nil, err
	}
	req.Rootfs = nil // it is root.path in the spec
	if req.Options, err = runcOptions(cfg, spec); err != nil {
		return nil, err
	}
	if err := context.Cause(ctx); err != nil {
		return nil, errdefs.New(errdefs.Canceled, "create container "+req.ID, err)
	}
	// A runtime that is stopped half way leaves things behind that nobody knows of,
	// so a client that goes away does not stop it.
	resp, err := s.TaskService.Create(context.WithoutCancel(ctx), req)
	if err != nil {
		if discardErr := discard(ctx, record); discardErr != nil {
			log.G(ctx).WithError(discardErr).Error("clean up after a failed create")
			// It may use its file system, and who deletes it must find its record.
			c.left, done = true, nil
		}
		return nil, err
	}
	if _, err := s.pod.Update(req.ID, func(r pod.Record) pod.Record { r.Pid = resp.Pid; return r }); err != nil {
		log.G(ctx).WithError(err).Warn("the keeper will not know the container's process")
	}
	if c.sandbox {
		s.settleSandbox(ctx, req.ID, spec, cfg)
	}
	return resp, nil
}

// prepare gives a container its root file system and completes its spec.
func (s *service) prepare(ctx context.Context, req *taskapi.CreateTaskRequest, spec *rspec.Spec, cfg Config, done *undo) (bundlegen.Identity, error) {
	none := bundlegen.Identity{}
	if err := refuseUnsupported(spec); err != nil {
		return none, err
	}
	volume, err := guestPull(req.Rootfs)
	if err != nil {
		return none, err
	}
	ref, err := pinned(spec, volume)
	if err != nil {
		return none, err
	}
	op := "create container from " + ref.String()
	user, err := userOf(spec)
	if err != nil {
		return none, err
	}
	ids, err := bundlegen.MappingOf(spec)
	if err != nil {
		return none, err
	}
	mounts, err := imageMounts(spec)
	if err != nil {
		return none, err
	}
	image, err := s.pull(ctx, req.ID, ref.String(), spec, cfg)
	if err != nil {
		return none, err
	}
	mounted, err := s.pullMounts(ctx, req.ID, mounts, spec, cfg)
	if err != nil {
		return none, err
	}
	volumes, err := volumesOf(spec, image.Config.Config.Volumes)
	if err != nil {
		return none, err
	}
	done.add(func() error { return s.store.remove(req.ID) })
	v := view{label: spec.Linux.MountLabel, ids: ids}
	rootfs, err := s.store.mount(req.ID, image, v)
	if err == nil {
		err = s.store.addImageMounts(req.ID, spec, mounts, mounted, v)
	}
	if err != nil {
		return none, errdefs.New(errdefs.KindOf(err), op, err)
	}
	identity, err := s.store.complete(req.ID, req.Bundle, rootfs, spec, user, volumes)
	if err != nil {
		return none, errdefs.New(errdefs.KindOf(err), op, err)
	}
	return identity, nil
}

// pullMounts pulls the images that a container mounts.
func (s *service) pullMounts(ctx context.Context, id string, mounts []bundlegen.ImageMount, spec *rspec.Spec, cfg Config) ([]layers.Image, error) {
	images := make([]layers.Image, len(mounts))
	for i, m := range mounts {
		image, err := s.pull(ctx, id, m.Reference, spec, cfg)
		if err != nil {
			return nil, err
		}
		images[i] = image
	}
	return images, nil
}

func newRecord(req *taskapi.CreateTaskRequest, spec *rspec.Spec, cfg Config, ns string) pod.Record {
	return pod.Record{
		ID:      req.ID,
		Bundle:  req.Bundle,
		Sandbox: isSandbox(spec),
		Runtime: cfg.Runtime,
		// containerd's task service puts its namespace below the root.
		RuntimeRoot: filepath.Join(cfg.RuntimeRoot, ns),
		Cgroup:      spec.Linux.CgroupsPath,
		ExitsDir:    cfg.ExitsDir,
		Stdin:       req.Stdin,
		Stdout:      req.Stdout,
		Stderr:      req.Stderr,
		Terminal:    req.Terminal,
	}
}

// configOf loads the configuration whose path CRI-O was given for the handler.
func configOf(opts *ptypes.Any) (Config, error) {
	if opts == nil {
		return LoadConfig("")
	}
	v, err := typeurl.UnmarshalAny(opts)
	if err != nil {
		return Config{}, errdefs.New(errdefs.InvalidArgument, "read the options of a container", err)
	}
	o, ok := v.(*runtimeoptions.Options)
	if !ok {
		return Config{}, errdefs.Newf(errdefs.InvalidArgument, "read the options of a container", "they are of type %T", v)
	}
	return LoadConfig(o.ConfigPath)
}

// runcOptions are the options of containerd's runc task service.
func runcOptions(cfg Config, spec *rspec.Spec) (*ptypes.Any, error) {
	opts, err := typeurl.MarshalAny(&options.Options{
		BinaryName: cfg.Runtime,
		Root:       cfg.RuntimeRoot,
		// Only systemd's form of a cgroup path has colons.
		SystemdCgroup: strings.Contains(spec.Linux.CgroupsPath, ":"),
	})
	if err != nil {
		return nil, fmt.Errorf("encode runtime options: %w", err)
	}
	return protobuf.FromAny(opts), nil
}
