// Package registry is a [manifestonly.Source] on the docker transport of
// containers/image, with the node's own configuration and its meaning in CRI-O:
// registries.conf, registries.d, certs.d, auth.json and policy.json.
package registry

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"github.com/containers/image/v5/docker"
	"github.com/containers/image/v5/docker/reference"
	"github.com/containers/image/v5/image"
	"github.com/containers/image/v5/pkg/shortnames"
	"github.com/containers/image/v5/pkg/sysregistriesv2"
	"github.com/containers/image/v5/signature"
	"github.com/containers/image/v5/types"

	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// Config says where the node's configuration is. Every field has a usable zero:
// the default of containers/image.
type Config struct {
	// AuthFile holds credentials for pulls that bring none (crio.conf global_auth_file).
	AuthFile string
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
	// insecure_registries). As in CRI-O, 127.0.0.0/8 always is.
	InsecureRegistries []string
	// UserAgent that registries see; "" is the default of containers/image.
	UserAgent string
}

// Source reads from registries.
type Source struct {
	config   Config
	insecure insecure
}

var _ manifestonly.Source = (*Source)(nil)

// New returns a Source. It reads no file: each pull sees policy, auth file and
// certificates as they then are. registries.conf is read once per process, by
// containers/image, as in a CRI-O that is not told to reload.
func New(config Config) *Source {
	return &Source{config: config, insecure: parseInsecure(config.InsecureRegistries)}
}

// systemContext returns what containers/image takes as configuration.
func (s *Source) systemContext() *types.SystemContext {
	return &types.SystemContext{
		AuthFilePath:                s.config.AuthFile,
		SignaturePolicyPath:         s.config.PolicyPath,
		SystemRegistriesConfPath:    s.config.RegistriesConf,
		SystemRegistriesConfDirPath: s.config.RegistriesConfDir,
		RegistriesDirPath:           s.config.RegistriesD,
		DockerPerHostCertDirPath:    s.config.CertsD,
		DockerRegistryUserAgent:     s.config.UserAgent,
	}
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
	if registry != nil && registry.Blocked {
		return nil, t.fail(errdefs.Unsupported, "pull", errors.New("the registry is blocked by registries.conf"))
	}
	policy, err := s.policy(sys, access.Namespace)
	if err != nil {
		return nil, t.fail(errdefs.KindOf(err), "read signature policy", err)
	}
	named, err := reference.ParseNormalizedNamed(ref.String())
	if err != nil {
		return nil, t.fail(errdefs.InvalidArgument, "pull", err)
	}
	dockerRef, err := docker.NewReference(named)
	if err != nil {
		return nil, t.fail(errdefs.InvalidArgument, "pull", err)
	}
	src, err := dockerRef.NewImageSource(ctx, sys)
	if err != nil {
		return nil, errors.Join(t.mapped(ctx, "pull", err), policy.Destroy())
	}
	return &remote{
		target:    t,
		src:       src,
		policy:    policy,
		instances: map[imageref.ManifestDigest]*image.UnparsedImage{},
	}, nil
}

// authorise returns the configuration for one pull of one registry.
func (s *Source) authorise(ctx context.Context, t target, access manifestonly.Access) (*types.SystemContext, error) {
	sys := s.systemContext()
	username, password, err := access.Credentials.Pair()
	if err != nil {
		return nil, t.fail(errdefs.InvalidArgument, "pull", err)
	}
	if token := access.Credentials.IdentityToken; username != "" || token != "" {
		sys.DockerAuthConfig = &types.DockerAuthConfig{Username: username, Password: password, IdentityToken: token}
	}
	sys.DockerBearerRegistryToken = access.Credentials.RegistryToken
	if s.insecure.has(ctx, t.ref.Registry()) {
		sys.DockerInsecureSkipTLSVerify = types.OptionalBoolTrue
	}
	return sys, nil
}

// policy returns the signature policy for a namespace.
func (s *Source) policy(sys *types.SystemContext, namespace string) (*signature.PolicyContext, error) {
	if namespace != "" && s.config.PolicyDir != "" {
		// A namespace with a slash could choose any file of the node as its policy.
		if filepath.Base(namespace) != namespace || namespace == ".." {
			return nil, errdefs.Newf(errdefs.InvalidArgument, "namespace policy", "invalid namespace %q", namespace)
		}
		path := filepath.Join(s.config.PolicyDir, namespace+".json")
		switch _, err := os.Stat(path); {
		case err == nil:
			sys.SignaturePolicyPath = path
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
	}
	policy, err := signature.DefaultPolicy(sys)
	if err != nil {
		return nil, err
	}
	return signature.NewPolicyContext(policy)
}

// insecure is the parsed list of insecure registries.
type insecure struct {
	hosts    map[string]bool
	networks []*net.IPNet
}

func parseInsecure(list []string) insecure {
	in := insecure{hosts: map[string]bool{}}
	for _, entry := range append([]string{"127.0.0.0/8"}, list...) {
		if _, network, err := net.ParseCIDR(entry); err == nil {
			in.networks = append(in.networks, network)
		} else {
			in.hosts[entry] = true
		}
	}
	return in
}

// has reports whether the registry (host[:port]) is insecure. A host that cannot
// be looked up, as behind a proxy, is in no network.
func (in insecure) has(ctx context.Context, registry string) bool {
	if in.hosts[registry] {
		return true
	}
	host, _, err := net.SplitHostPort(registry)
	if err != nil {
		host = registry // no port
	}
	addrs := []net.IP{net.ParseIP(host)}
	if addrs[0] == nil {
		if addrs, err = net.DefaultResolver.LookupIP(ctx, "ip", host); err != nil {
			return false
		}
	}
	for _, addr := range addrs {
		for _, network := range in.networks {
			if network.Contains(addr) {
				return true
			}
		}
	}
	return false
}
