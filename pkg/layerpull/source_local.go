package layerpull

import (
	"context"
	"errors"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/containers/image/v5/signature"

	"github.com/husk-cri/husk/internal/ocisource"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// localRegistry is the registry in the name of a local image. Its record never answers
// for an image of a registry, not even of one with this name.
const localRegistry = "localhost"

// IsLocation reports whether name is an image in a local OCI layout, as far as its form
// goes: "oci:PATH[:TAG]" for a directory, "oci-archive:FILE[:TAG]" for a tar file. It can
// also be read as a short image name ("oci:v1"): who wants that writes the registry
// before it.
func IsLocation(name string) bool { return ocisource.Is(name) }

// PullLocation is [Pull] for the image at a location, see [IsLocation]. It returns the
// name that the image has in the store, localhost/<name of the directory or file>@digest.
// Whatever the layout calls the image has no say in it.
//
// The image is checked as one from a registry is: against PolicyPath, where the scopes of
// the transports oci and oci-archive are paths, against Rules, and in each digest and
// size. That is done each time, also when the store has its layers. Credentials, AuthFile
// and what is about registries does not apply. A layout is not trusted: its links lead
// nowhere, and of an archive, which must not be compressed as a whole, nothing is
// unpacked but the layers.
//
// Errors are those of Pull. NotFound is a path, an image or a blob that is not there;
// NotAnImage also a layout that leads out of itself.
func PullLocation(ctx context.Context, location string, store *Store, cfg Config) (imageref.Reference, Image, error) {
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeouts.withDefaults().Pull)
	defer cancel()
	ref, img, err := pullLocation(ctx, location, store, cfg)
	if err != nil {
		return imageref.Reference{}, Image{}, errdefs.New(kindOf(ctx, err), "pull "+location, err)
	}
	return ref, img, nil
}

func pullLocation(ctx context.Context, location string, store *Store, cfg Config) (imageref.Reference, Image, error) {
	src, err := openLocation(location, cfg)
	if err != nil {
		return imageref.Reference{}, Image{}, err
	}
	defer src.close()
	unlock, err := store.hold(ctx, src.ref)
	if err != nil {
		return imageref.Reference{}, Image{}, err
	}
	defer unlock()
	began := time.Now()
	img, err := pullFrom(ctx, src, store, cfg, began)
	return src.ref, img, err
}

func openLocation(location string, cfg Config) (*source, error) {
	sys := cfg.systemContext()
	rules, err := signature.DefaultPolicy(sys)
	if err != nil {
		return nil, errdefs.New(errdefs.Internal, "read signature policy", err)
	}
	image, err := ocisource.Open(location)
	if err != nil {
		return nil, err
	}
	ref, err := localName(image)
	if err != nil {
		return nil, errors.Join(errdefs.New(errdefs.NotAnImage, "name image", err), image.Close())
	}
	return &source{
		ref: ref, location: location, sys: sys, src: image, rules: rules, stall: cfg.Timeouts.withDefaults().Stall,
	}, nil
}

var notInName = regexp.MustCompile(`[^a-z0-9]+`)

// localName is the name of a local image.
func localName(image *ocisource.Image) (imageref.Reference, error) {
	base := strings.TrimSuffix(filepath.Base(image.Path()), ".tar")
	base = strings.Trim(notInName.ReplaceAllString(strings.ToLower(base), "-"), "-")
	if base == "" {
		base = "image"
	}
	named, err := imageref.ParseReference(localRegistry + "/" + base)
	if err != nil {
		return imageref.Reference{}, err
	}
	d, err := imageref.ParseManifestDigest(image.Descriptor().Digest.String())
	if err != nil {
		return imageref.Reference{}, err
	}
	return named.Pin(d)
}
