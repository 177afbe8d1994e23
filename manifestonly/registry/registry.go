// Package registry is a [manifestonly.Source] on the docker transport of
// containers/image, with the node's own configuration and its meaning in CRI-O:
// registries.conf, registries.d, certs.d, auth.json and policy.json.
package registry

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containers/image/v5/docker"
	"github.com/containers/image/v5/docker/reference"
	"github.com/containers/image/v5/pkg/shortnames"
	"github.com/containers/image/v5/pkg/sysregistriesv2"
	"github.com/containers/image/v5/types"

	"github.com/husk-cri/husk/internal/untrusted"
	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/manifestonly/internal/imagesource"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// Config says where the node's configuration is. Every field has a usable zero:
// the default of containers/image.
type Config struct {
	// AuthFile holds credentials for pulls that bring none (crio.conf global_auth_file).
	AuthFile string
	// NamespacedAuthDir is where crio-credential-provider leaves auth files for one
	// pull each (crio.conf namespaced_auth_dir, in CRI-O newer than 1.34.0); "" for none.
	NamespacedAuthDir string
	// PolicyPath is the signature policy (crio.conf signature_policy).
	PolicyPath string
	// PolicyDir holds <namespace>.json, which replaces PolicyPath for the pods of
	// that namespace (crio.conf signature_policy_dir); "" for none.
	PolicyDir string
	// RegistriesConf and RegistriesConfDir are registries.conf and its drop-ins.
	RegistriesConf, RegistriesConfDir string
	// RegistriesD says where signatures are (registries.d).
	RegistriesD string
	// CertsD holds CA and client certificates per registry (certs.d).
	CertsD string
	// InsecureRegistries are hosts (host[:port]) and networks (CIDR) that are
	// asked without checking certificates, by plain HTTP if need be (crio.conf
	// insecure_registries). As in CRI-O, 127.0.0.0/8 always is, and a host name is in
	// the networks of its addresses; the latter not in an UntrustedNetwork.
	InsecureRegistries []string
	// ShortNameMode is what becomes of a short name that may mean several images:
	// [ShortNamesEnforcing] refuses it; "" and "disabled" try them all, as CRI-O
	// 1.34.0 does, which has no such setting.
	ShortNameMode string
	// ProgressTimeout cuts off a pull that makes no progress for that long (crio.conf
	// pull_progress_timeout); 0 is 30 s.
	ProgressTimeout time.Duration
	// UntrustedNetwork says that whoever runs the network, such as a tenant in the
	// network namespace of a pod, may answer for any address and read what is not
	// encrypted. Where a connection is not verified (insecure), the node's own
	// credentials and what the store holds are then not used; those of the request are.
	// Where it is verified, nothing but TLS is spoken to get at the manifest, to a token
	// service either. Zero: the host's network.
	UntrustedNetwork bool
	// UserAgent that registries see; "" is the default of containers/image.
	UserAgent string
}

// ShortNamesEnforcing is the Config.ShortNameMode that refuses ambiguous names
// (crio.conf short_name_mode, the default of CRI-O newer than 1.34.0).
const ShortNamesEnforcing = "enforcing"

// Source reads from registries. Every pull has connections and tokens of its own:
// one connection per registry and one token, used for all requests of that pull
// and gone with it. Nothing is shared between pulls, so no credential ever profits
// from what another one was given, and a revoked one ends with its last pull.
type Source struct {
	config   Config
	insecure insecure
	steps    stepper
	authFile string // of the one pull this Source is for; "" for the node's
}

var (
	_ manifestonly.Source  = (*Source)(nil)
	_ manifestonly.Starter = (*Source)(nil)
)

// New returns a Source. It reads no file: each pull sees policy, auth file and
// certificates as they then are. registries.conf is kept by containers/image, once
// per process; see [Source.Reload].
func New(config Config) *Source {
	return &Source{
		config:   config,
		insecure: parseInsecure(config.InsecureRegistries, config.UntrustedNetwork),
		steps:    stepper{guard: guard{progress: config.ProgressTimeout}},
	}
}

// Reload reads registries.conf and its drop-ins again, as CRI-O does on SIGHUP.
// When they are not valid it says so, and what was read before stays in force.
func (s *Source) Reload() error {
	if _, err := sysregistriesv2.TryUpdatingCache(s.systemContext()); err != nil {
		return errdefs.New(errdefs.InvalidArgument, "reload registries.conf", err)
	}
	return nil
}

// systemContext returns what containers/image takes as configuration.
func (s *Source) systemContext() *types.SystemContext {
	sys := &types.SystemContext{
		AuthFilePath:                s.config.AuthFile,
		SignaturePolicyPath:         s.config.PolicyPath,
		SystemRegistriesConfPath:    s.config.RegistriesConf,
		SystemRegistriesConfDirPath: s.config.RegistriesConfDir,
		RegistriesDirPath:           s.config.RegistriesD,
		DockerPerHostCertDirPath:    s.config.CertsD,
		DockerRegistryUserAgent:     s.config.UserAgent,
	}
	if s.authFile != "" {
		sys.AuthFilePath = s.authFile
	}
	return sys
}

// Resolve implements [manifestonly.Source]. As in CRI-O, a short name stands for
// its alias, or else for the name at every search registry.
func (s *Source) Resolve(_ context.Context, name string) ([]imageref.Reference, error) {
	op := "resolve image name " + name
	sys := s.systemContext()
	all := types.ShortNameModeDisabled
	sys.ShortNameMode = &all
	resolved, err := shortnames.Resolve(sys, name)
	if err != nil {
		return nil, errdefs.New(errdefs.InvalidArgument, op, err)
	}
	if n := len(resolved.PullCandidates); n > 1 && s.config.ShortNameMode == ShortNamesEnforcing {
		return nil, errdefs.Newf(errdefs.InvalidArgument, op,
			"short_name_mode is %q, and the name may mean %d images: write the registry into the name", ShortNamesEnforcing, n)
	}
	refs := make([]imageref.Reference, 0, len(resolved.PullCandidates))
	for _, candidate := range resolved.PullCandidates {
		ref, err := imageref.ParseReference(candidate.Value.String())
		if err != nil {
			return nil, errdefs.New(errdefs.InvalidArgument, op, err)
		}
		refs = append(refs, ref)
	}
	return refs, nil
}

// Open implements [manifestonly.Source].
func (s *Source) Open(ctx context.Context, ref imageref.Reference, access manifestonly.Access) (manifestonly.Remote, error) {
	t := target{ref: ref, credentials: access.Credentials}
	sys, err := s.authorise(ctx, t, access)
	if err != nil {
		return nil, err
	}
	registry, err := sysregistriesv2.FindRegistry(sys, ref.Repository())
	if err != nil {
		return nil, t.fail(errdefs.Internal, "read registries.conf", err)
	}
	doubtful := s.config.UntrustedNetwork && untrusted.Unverified(sys, registry)
	if doubtful {
		if err := untrusted.Withhold(sys); err != nil {
			return nil, t.fail(errdefs.KindOf(err), "pull", err)
		}
	}
	if registry != nil && registry.Blocked {
		return nil, t.fail(errdefs.Unsupported, "pull", errors.New("the registry is blocked by registries.conf"))
	}
	dockerRef, err := dockerReference(ref)
	if err != nil {
		return nil, t.fail(errdefs.InvalidArgument, "pull", err)
	}
	policy, err := s.policy(sys, access.Namespace)
	if err != nil {
		return nil, t.fail(errdefs.KindOf(err), "read signature policy", err)
	}
	var src types.ImageSource
	open := func(ctx context.Context) error {
		src, err = dockerRef.NewImageSource(ctx, sys)
		return err
	}
	err = s.steps.step(ctx, t, "pull", func(ctx context.Context) error {
		if s.config.UntrustedNetwork && !doubtful {
			// Here it is found out where to log in, and all later steps log in there.
			return untrusted.Encrypted(ctx, open)
		}
		return open(ctx)
	})
	if err != nil {
		_ = policy.Destroy() // frees memory; the reason to say is the other one
		return nil, err
	}
	remote := imagesource.New(ref, src, policy, runner{s.steps, t})
	if doubtful {
		return stranger{remote}, nil
	}
	return remote, nil
}

// stranger is a Remote at a registry that nothing verified, in an untrusted network.
type stranger struct{ *imagesource.Remote }

var (
	_ manifestonly.Stranger = stranger{}
	_ manifestonly.Primer   = stranger{}
)

// Stranger implements [manifestonly.Stranger].
func (stranger) Stranger() {}

// runner runs the steps of one Remote.
type runner struct {
	steps  stepper
	target target
}

// Step implements imagesource.Runner.
func (r runner) Step(ctx context.Context, doing string, fn func(context.Context) error) error {
	return r.steps.step(ctx, r.target, doing, fn)
}

// Fail implements imagesource.Runner.
func (r runner) Fail(kind errdefs.Kind, doing string, err error) error {
	return r.target.fail(kind, doing, err)
}

func dockerReference(ref imageref.Reference) (types.ImageReference, error) {
	named, err := reference.ParseNormalizedNamed(ref.String())
	if err != nil {
		return nil, fmt.Errorf("parse reference: %w", err)
	}
	return docker.NewReference(named)
}

// authorise returns the configuration for one pull of one registry.
func (s *Source) authorise(ctx context.Context, t target, access manifestonly.Access) (*types.SystemContext, error) {
	sys := s.systemContext()
	if err := access.Credentials.Apply(sys); err != nil {
		return nil, t.fail(errdefs.InvalidArgument, "pull", err)
	}
	// The look-up is no step: a name server that hangs costs the time of one, no more.
	lookup, cancel := context.WithTimeout(ctx, s.steps.guard.limit())
	defer cancel()
	if s.insecure.has(lookup, t.ref.Registry()) {
		sys.DockerInsecureSkipTLSVerify = types.OptionalBoolTrue
	}
	return sys, nil
}
