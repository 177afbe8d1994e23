package imagers

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// Resources reads resources of the key broker.
type Resources interface {
	// Resource returns the resource with the given kbs:// URI.
	Resource(ctx context.Context, uri string) ([]byte, error)
}

// Files are the files that containers/image reads, and what the process's
// environment needs. All of them are in one directory, which holds credentials.
type Files struct {
	// Policy, Auth and Registries are policy.json, auth.json and registries.conf.
	Policy, Auth, Registries string
	// RegistriesD is registries.d. Empty is an empty directory: the guest's own
	// drop-ins take no part.
	RegistriesD, Empty string
	// Environment is "NAME=value": proxies and certificate directories. It is read
	// once per process, so it must be set before the first request.
	Environment []string
}

// The directories that crypto/x509 looks into on Linux. SSL_CERT_DIR replaces them, so
// they are named beside the extra certificates.
const systemCertDirs = "/etc/ssl/certs:/etc/pki/tls/certs"

// maxExtraRoots bounds the extra certificates; each makes every handshake slower.
const maxExtraRoots = 1024

// writer makes the files.
type writer struct {
	dir       string
	resources Resources // nil without a CDH
	keys      int
}

// Write makes the files in dir, an empty directory that only root reads. resources may
// be nil, and then a kbs:// URI is Unsupported. Its errors are also those of resources,
// and InvalidArgument for a file that is not valid or would not mean what it meant to
// image-rs; they never quote a file.
func (c Config) Write(ctx context.Context, dir string, resources Resources) (Files, error) {
	w := &writer{dir: dir, resources: resources}
	f := Files{
		Policy: w.path("policy.json"), Auth: w.path("auth.json"), Registries: w.path("registries.conf"),
		RegistriesD: w.path("registries.d"), Empty: w.path("empty"), Environment: c.Proxy.environment(),
	}
	for _, sub := range []string{f.RegistriesD, f.Empty, w.path("roots")} {
		if err := os.Mkdir(sub, 0o700); err != nil {
			return Files{}, errdefs.New(errdefs.Internal, "write configuration", err)
		}
	}
	registries, err := w.registries(ctx, c)
	if err != nil {
		return Files{}, errdefs.New(errdefs.KindOf(err), "read registry configuration", err)
	}
	if err := w.policy(ctx, c, registries); err != nil {
		return Files{}, errdefs.New(errdefs.KindOf(err), "read image security policy", err)
	}
	if err := w.auth(ctx, c.AuthURI); err != nil {
		return Files{}, errdefs.New(errdefs.KindOf(err), "read registry credentials", err)
	}
	if err := w.sigstore(ctx, c); err != nil {
		return Files{}, errdefs.New(errdefs.KindOf(err), "read sigstore configuration", err)
	}
	roots, err := w.roots(c.ExtraRoots)
	if err != nil {
		return Files{}, errdefs.New(errdefs.KindOf(err), "read extra_root_certificates", err)
	}
	f.Environment = append(f.Environment, roots...)
	return f, nil
}

func (w *writer) path(name string) string { return filepath.Join(w.dir, name) }

func (w *writer) write(name string, data []byte) error {
	if err := os.WriteFile(w.path(name), data, 0o600); err != nil {
		return errdefs.New(errdefs.Internal, "write configuration", err)
	}
	return nil
}

// fetch returns what a URI of image-rs names. An error does not quote it.
func (w *writer) fetch(ctx context.Context, uri string) ([]byte, error) {
	scheme, rest, ok := strings.Cut(uri, "://")
	switch {
	case !ok:
		rest = uri
	case scheme == "file":
	case scheme == "kbs" || strings.HasPrefix(scheme, "kbs+"):
		if w.resources == nil {
			return nil, errdefs.Newf(errdefs.Unsupported, "fetch "+uri, "no CDH socket is configured that could")
		}
		data, err := w.resources.Resource(ctx, uri)
		if err != nil {
			return nil, errdefs.New(errdefs.KindOf(err), "fetch "+uri, err)
		}
		return data, nil
	default:
		return nil, errdefs.Newf(errdefs.InvalidArgument, "fetch "+uri, "the scheme is none of file, kbs, kbs+PLUGIN")
	}
	if !filepath.IsAbs(rest) { // image-rs would take it from wherever CDH was started
		return nil, errdefs.Newf(errdefs.InvalidArgument, "fetch "+uri, "%q is not an absolute path", rest)
	}
	data, err := readFile(rest)
	if err != nil {
		return nil, errdefs.New(errdefs.InvalidArgument, "fetch "+uri, err)
	}
	return data, nil
}

// either returns what the URI names, else the text; nil for neither.
func (w *writer) either(ctx context.Context, uri, text string) ([]byte, error) {
	if uri != "" {
		return w.fetch(ctx, uri)
	}
	if text != "" {
		return []byte(text), nil
	}
	return nil, nil
}

// sigstore writes the one file of registries.d.
func (w *writer) sigstore(ctx context.Context, c Config) error {
	data, err := w.either(ctx, c.SigstoreURI, c.Sigstore)
	if err != nil || data == nil {
		return err
	}
	return w.write("registries.d/image-rs.yaml", data)
}

// roots writes the extra certificates and returns the variable by which they are found.
func (w *writer) roots(certificates []string) ([]string, error) {
	if len(certificates) == 0 {
		return nil, nil
	}
	if len(certificates) > maxExtraRoots {
		return nil, errdefs.Newf(errdefs.TooLarge, "check", "%d certificates, at most %d", len(certificates), maxExtraRoots)
	}
	for i, text := range certificates {
		block, _ := pem.Decode([]byte(text))
		if block == nil || block.Type != "CERTIFICATE" {
			return nil, errdefs.Newf(errdefs.InvalidArgument, "check", "number %d is no certificate in PEM", i)
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return nil, errdefs.New(errdefs.InvalidArgument, "check", fmt.Errorf("number %d: %w", i, err))
		}
		if err := w.write(fmt.Sprintf("roots/%d.pem", i), []byte(text)); err != nil {
			return nil, err
		}
	}
	return []string{"SSL_CERT_DIR=" + systemCertDirs + ":" + w.path("roots")}, nil
}

func (p Proxy) environment() []string {
	var env []string
	add := func(name, value string) {
		if value != "" {
			env = append(env, name+"="+value)
		}
	}
	add("HTTPS_PROXY", p.HTTPS)
	add("HTTP_PROXY", p.HTTP)
	if len(env) > 0 { // alone it does nothing, as in image-rs
		add("NO_PROXY", p.No)
	}
	return env
}
