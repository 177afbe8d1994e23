package shim

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

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
	"github.com/husk-cri/husk/internal/sandbox"
	"github.com/husk-cri/husk/internal/sandbox/layers"
	"github.com/husk-cri/husk/internal/shim/pod"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/layerpull"
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
		return nil, err
	}
	if _, err := s.pod.Update(req.ID, func(r pod.Record) pod.Record { r.Pid = resp.Pid; return r }); err != nil {
		log.G(ctx).WithError(err).Warn("the keeper will not know the container's process")
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
	image, err := s.pull(ctx, req.ID, ref.String(), spec, cfg)
	if err != nil {
		return none, err
	}
	volumes, err := volumesOf(spec, image.Config.Config.Volumes)
	if err != nil {
		return none, err
	}
	done.add(func() error { return s.store.remove(req.ID) })
	rootfs, err := s.store.mount(req.ID, image, spec.Linux.MountLabel)
	if err != nil {
		return none, errdefs.New(errdefs.Internal, op, err)
	}
	identity, err := bundlegen.Complete(spec, rootfs, user, volumes)
	if err != nil {
		return none, errdefs.New(errdefs.KindOf(err), op, err)
	}
	return identity, nil
}

func (s *service) pull(ctx context.Context, id, ref string, spec *rspec.Spec, cfg Config) (layers.Image, error) {
	place, err := sandbox.PlaceOf(spec)
	if err != nil {
		return layers.Image{}, err
	}
	if err := s.store.open(cfg.StoreSize); err != nil {
		return layers.Image{}, errdefs.New(errdefs.Internal, "pull "+ref, err)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(cfg.PullTimeout))
	defer cancel()
	begin := time.Now()
	score := 0
	if spec.Process.OOMScoreAdj != nil {
		score = *spec.Process.OOMScoreAdj
	}
	image, err := s.puller.Run(ctx, layers.Request{
		OOMScoreAdj: score,
		Name:        id,
		Place:       place,
		Pull: layers.PullRequest{
			Reference:         ref,
			StoreDir:          s.store.images(),
			TempDir:           s.store.temp(),
			AuthFile:          cfg.AuthFile,
			KeysDir:           cfg.KeysDir,
			KeyProviders:      cfg.KeyProviders,
			Rules:             cfg.ImageRules,
			PolicyPath:        cfg.Policy,
			RegistriesConf:    cfg.RegistriesConf,
			RegistriesConfDir: cfg.RegistriesConfDir,
			RegistriesD:       cfg.RegistriesD,
			CertsDir:          cfg.CertsDir,
		},
	})
	if err != nil {
		// A child that was killed could not clean up, and what it left is the pod's memory.
		if _, cleanErr := layerpull.OpenStore(s.store.images()); cleanErr != nil {
			log.G(ctx).WithError(cleanErr).Error("clean up after a failed pull")
		}
		return layers.Image{}, err
	}
	log.G(ctx).WithField("container", id).Infof("pulled %s in %s", ref, time.Since(begin).Round(time.Millisecond))
	return image, nil
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
