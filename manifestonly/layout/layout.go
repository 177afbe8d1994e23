// Package layout is a [manifestonly.Source] of one image in a local directory or
// file, for looking at images without a registry. No CRI request can name one.
package layout

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/containers/image/v5/directory"
	"github.com/containers/image/v5/signature"
	"github.com/containers/image/v5/types"
	"github.com/distribution/reference"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/internal/ocisource"
	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/manifestonly/internal/imagesource"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// Config says where the node's configuration is. Every field has a usable zero.
type Config struct {
	// PolicyPath is the signature policy, which also speaks of these transports; ""
	// is the default of containers/image.
	PolicyPath string
}

// plainDir is dir:PATH of containers-transports(5). The other locations are
// oci:PATH[:TAG] and oci-archive:FILE[:TAG].
const plainDir = "dir:"

// Is reports whether name is a location, as far as its form goes. Such a name can
// also be read as a short image name ("oci:v1"): who wants that writes the
// registry before it.
func Is(name string) bool {
	return ocisource.Is(name) || strings.HasPrefix(name, plainDir)
}

// Source is the one image at a location.
type Source struct {
	location string
	config   Config
	ref      imageref.Reference
}

var _ manifestonly.Source = (*Source)(nil)

// New returns the Source of the image at a location. What is not there is
// errdefs.NotFound; a location that is malformed, or that holds several images of
// which it names none, is errdefs.InvalidArgument. An archive is read in its place, so
// one that is compressed as a whole is errdefs.Unsupported.
//
// The image gets the name that its layout gives it (the TAG, or the annotation
// org.opencontainers.image.ref.name of the only image) where that is a full
// reference; else it is localhost/<name of the directory or file>:<TAG or latest>.
func New(location string, config Config) (*Source, error) {
	op := "read image " + location
	s := &Source{location: location, config: config}
	name, path, err := s.parse()
	if err != nil {
		return nil, errdefs.New(kindOf(err, errdefs.InvalidArgument), op, err)
	}
	if s.ref, err = nameOf(name, path); err != nil {
		return nil, errdefs.New(errdefs.InvalidArgument, op, err)
	}
	return s, nil
}

// parse finds the name that the image has there, and the path.
func (s *Source) parse() (name, path string, err error) {
	if dir, ok := strings.CutPrefix(s.location, plainDir); ok {
		ref, err := directory.NewReference(dir)
		if err != nil {
			return "", "", err
		}
		return "", ref.PolicyConfigurationIdentity(), nil
	}
	image, err := ocisource.Open(s.location)
	if err != nil {
		return "", "", err
	}
	return image.Descriptor().Annotations[imgspec.AnnotationRefName], image.Path(), image.Close()
}

// open opens the image.
func (s *Source) open(ctx context.Context, sys *types.SystemContext) (types.ImageSource, error) {
	dir, ok := strings.CutPrefix(s.location, plainDir)
	if !ok {
		return ocisource.Open(s.location)
	}
	ref, err := directory.NewReference(dir)
	if err != nil {
		return nil, err
	}
	return ref.NewImageSource(ctx, sys)
}

var (
	notInName = regexp.MustCompile(`[^a-z0-9]+`)
	isTag     = regexp.MustCompile(`^` + reference.TagRegexp.String() + `$`)
)

// nameOf returns the reference of an image that has this name in its layout, at
// this path.
func nameOf(name, path string) (imageref.Reference, error) {
	if named, err := reference.ParseNamed(name); err == nil { // only a full one
		return imageref.FromNamed(named), nil
	}
	tag := "latest"
	if isTag.MatchString(name) {
		tag = name
	}
	base := filepath.Base(path)
	base = strings.TrimSuffix(base, ".tar")
	base = strings.Trim(notInName.ReplaceAllString(strings.ToLower(base), "-"), "-")
	if base == "" {
		base = "image"
	}
	return imageref.ParseReference("localhost/" + base + ":" + tag)
}

// Resolve implements [manifestonly.Source] for the one name it was made for.
func (s *Source) Resolve(_ context.Context, name string) ([]imageref.Reference, error) {
	if name != s.location {
		return nil, errdefs.Newf(errdefs.InvalidArgument, "read image "+name, "this is the source of %s alone", s.location)
	}
	return []imageref.Reference{s.ref}, nil
}

// Open implements [manifestonly.Source]. Of access nothing applies: the policy is
// the node's, and files have no credentials.
func (s *Source) Open(ctx context.Context, ref imageref.Reference, _ manifestonly.Access) (manifestonly.Remote, error) {
	run := runner{s.location, ref}
	sys := &types.SystemContext{SignaturePolicyPath: s.config.PolicyPath}
	rules, err := signature.DefaultPolicy(sys)
	if err != nil {
		return nil, run.Fail(errdefs.Internal, "read signature policy", err)
	}
	policy, err := signature.NewPolicyContext(rules)
	if err != nil {
		return nil, run.Fail(errdefs.Internal, "read signature policy", err)
	}
	src, err := s.open(ctx, sys)
	if err != nil {
		_ = policy.Destroy() // frees memory; the reason to say is the other one
		return nil, run.Fail(kindOf(err, errdefs.Internal), "open", err)
	}
	return imagesource.New(ref, src, policy, run), nil
}

// runner runs the steps of a pull from files: once.
type runner struct {
	location string
	ref      imageref.Reference
}

// Step implements imagesource.Runner.
func (r runner) Step(ctx context.Context, doing string, fn func(context.Context) error) error {
	if err := ctx.Err(); err != nil {
		return r.Fail(errdefs.KindOf(err), doing, err)
	}
	if err := fn(ctx); err != nil {
		return r.Fail(kindOf(err, errdefs.Internal), doing, err)
	}
	return nil
}

// Fail implements imagesource.Runner.
func (r runner) Fail(kind errdefs.Kind, doing string, err error) error {
	return errdefs.New(kind, doing+" "+r.ref.String()+" from "+r.location, err)
}

// kindOf returns the kind of an error about files.
func kindOf(err error, otherwise errdefs.Kind) errdefs.Kind {
	var (
		known   *errdefs.Error
		policy  signature.PolicyRequirementError
		invalid signature.InvalidSignatureError
	)
	switch {
	case errors.As(err, &known):
		return known.Kind()
	case errors.Is(err, fs.ErrNotExist):
		return errdefs.NotFound
	case errors.As(err, &policy), errors.As(err, &invalid):
		return errdefs.PolicyRefused
	}
	return otherwise
}
