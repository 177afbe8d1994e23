// Package ocisource reads one image from an OCI image layout, in a directory or in a
// tar archive, as an image source of containers/image. The layout is not trusted: its
// links lead nowhere, its files are bounded, and an archive is never unpacked.
//
// Manifests and blobs are what the layout has under their digests; who reads them
// checks the digest, as with a registry.
package ocisource

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"strings"

	"github.com/containers/image/v5/manifest"
	ocilayout "github.com/containers/image/v5/oci/layout"
	"github.com/containers/image/v5/types"
	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// maxDocumentBytes bounds index.json and each manifest, which are read whole: a sparse
// file of any size costs its maker nothing.
const maxDocumentBytes = 4 << 20

// Image is one image of a layout.
type Image struct {
	ref   types.ImageReference
	files files
	top   imgspec.Descriptor
}

var _ types.ImageSource = (*Image)(nil)

// files are the files of a layout, by their name in it: "index.json", or
// "blobs/sha256/" and a digest.
type files interface {
	// open opens a plain file and says how many bytes it has. Errors have a kind.
	open(name string) (io.ReadCloser, int64, error)
	io.Closer
}

// Is reports whether name is a location, as far as its form goes.
func Is(name string) bool {
	return strings.HasPrefix(name, Dir) || strings.HasPrefix(name, Archive)
}

// Open opens the image at a location, "oci:PATH[:TAG]" or "oci-archive:FILE[:TAG]", as
// containers-transports(5) has them. Errors are of kind InvalidArgument (no location, or
// one with several images of which it names none), NotFound, NotAnImage (a layout that is
// malformed or leads out of itself), TooLarge, Unsupported (a compressed archive) and
// Internal.
func Open(location string) (*Image, error) {
	at, err := parse(location)
	if err != nil {
		return nil, err
	}
	files, err := at.open()
	if err != nil {
		return nil, err
	}
	i := &Image{ref: at.ref, files: files}
	if i.top, err = i.choose(at); err != nil {
		return nil, errors.Join(err, files.Close())
	}
	return i, nil
}

// choose finds the image in index.json, by the rules of containers/image.
func (i *Image) choose(at location) (imgspec.Descriptor, error) {
	const op = "read index.json"
	none := imgspec.Descriptor{}
	data, err := i.document(imgspec.ImageIndexFile)
	if err != nil {
		return none, err
	}
	var index imgspec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return none, errdefs.New(errdefs.NotAnImage, op, err)
	}
	all := index.Manifests
	switch {
	case at.number >= 0 && at.number < len(all):
		return all[at.number], nil
	case at.number >= 0:
		return none, errdefs.Newf(errdefs.NotFound, op, "it has %d images, and none with the number %d", len(all), at.number)
	case at.tag == "" && len(all) == 1:
		return all[0], nil
	case at.tag == "" && len(all) == 0:
		return none, errdefs.Newf(errdefs.NotFound, op, "it has no image")
	case at.tag == "":
		return none, errdefs.Newf(errdefs.InvalidArgument, op, "it has %d images: add the tag of one to the location", len(all))
	}
	for _, d := range all {
		if d.Annotations[imgspec.AnnotationRefName] == at.tag && isImageType(d.MediaType) {
			return d, nil
		}
	}
	return none, errdefs.Newf(errdefs.NotFound, op, "it has no image with the tag %q", at.tag)
}

func isImageType(mediaType string) bool {
	switch mediaType {
	case imgspec.MediaTypeImageManifest, imgspec.MediaTypeImageIndex, manifest.DockerV2Schema2MediaType, manifest.DockerV2ListMediaType:
		return true
	}
	return false
}

// document reads a file that is read whole.
func (i *Image) document(name string) (_ []byte, err error) {
	f, size, err := i.files.open(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if size > maxDocumentBytes {
		return nil, errdefs.Newf(errdefs.TooLarge, "read "+name, "%d bytes, the limit is %d", size, maxDocumentBytes)
	}
	data, err := io.ReadAll(io.LimitReader(f, size))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) != size { // another process has changed it
		return nil, errdefs.Newf(errdefs.DigestMismatch, "read "+name, "it ends after %d of its %d bytes", len(data), size)
	}
	return data, nil
}

// blobName is the name of a blob in the layout. Its digest is well-formed, so that it
// is a name and no path.
func blobName(d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil {
		return "", errdefs.Newf(errdefs.NotAnImage, "find blob", "digest %.100q: %w", string(d), err)
	}
	if d.Algorithm() != digest.SHA256 {
		return "", errdefs.Newf(errdefs.NotAnImage, "find blob", "digest %q: only sha256 is supported", string(d))
	}
	return imgspec.ImageBlobsDir + "/" + digest.SHA256.String() + "/" + d.Encoded(), nil
}

// Descriptor is what index.json says of the image.
func (i *Image) Descriptor() imgspec.Descriptor { return i.top }

// Path is where the layout is, absolute and without links.
func (i *Image) Path() string { return i.ref.PolicyConfigurationIdentity() }

// Reference implements [types.ImageSource]: the signature policy knows the image by the
// path of its layout.
func (i *Image) Reference() types.ImageReference { return i.ref }

// Close implements [types.ImageSource].
func (i *Image) Close() error { return i.files.Close() }

// GetManifest implements [types.ImageSource]. What type a manifest has is told by its
// content.
func (i *Image) GetManifest(_ context.Context, instance *digest.Digest) ([]byte, string, error) {
	d := i.top.Digest
	if instance != nil {
		d = *instance
	}
	name, err := blobName(d)
	if err != nil {
		return nil, "", err
	}
	data, err := i.document(name)
	if err != nil {
		return nil, "", err
	}
	if instance == nil && int64(len(data)) != i.top.Size {
		return nil, "", errdefs.Newf(errdefs.DigestMismatch, "read "+name, "it has %d bytes, index.json says %d", len(data), i.top.Size)
	}
	return data, manifest.GuessMIMEType(data), nil
}

// GetBlob implements [types.ImageSource]. A blob's URLs are not followed.
func (i *Image) GetBlob(_ context.Context, info types.BlobInfo, _ types.BlobInfoCache) (io.ReadCloser, int64, error) {
	name, err := blobName(info.Digest)
	if err != nil {
		return nil, 0, err
	}
	return i.files.open(name)
}

// HasThreadSafeGetBlob implements [types.ImageSource].
func (i *Image) HasThreadSafeGetBlob() bool { return true }

// GetSignatures implements [types.ImageSource]: layouts have none.
func (i *Image) GetSignatures(context.Context, *digest.Digest) ([][]byte, error) { return nil, nil }

// LayerInfosForCopy implements [types.ImageSource]: the manifest is right.
func (i *Image) LayerInfosForCopy(context.Context, *digest.Digest) ([]types.BlobInfo, error) {
	return nil, nil
}

// location is a parsed location.
type location struct {
	ref     types.ImageReference
	archive bool
	tag     string
	// number is the image's place in index.json; -1 for none.
	number int
}

// The forms of a location.
const (
	Dir     = "oci:"         // oci:PATH[:TAG] or oci:PATH:@NUMBER
	Archive = "oci-archive:" // oci-archive:FILE[:TAG]
)

// parse takes a location apart. containers/image checks it, and makes of the path what
// the signature policy calls it.
func parse(text string) (at location, err error) {
	const op = "read location"
	at.number = -1
	rest, ok := strings.CutPrefix(text, Dir)
	if !ok {
		if rest, at.archive = strings.CutPrefix(text, Archive); !at.archive {
			return at, errdefs.Newf(errdefs.InvalidArgument, op, "%q is none: want %sPATH[:TAG] or %sFILE[:TAG]", text, Dir, Archive)
		}
	}
	path, tag, _ := strings.Cut(rest, ":")
	if path == "" {
		return at, errdefs.Newf(errdefs.InvalidArgument, op, "%q has no path", text)
	}
	if number, ok := strings.CutPrefix(tag, "@"); ok && !at.archive {
		if at.number, err = strconv.Atoi(number); err != nil || at.number < 0 {
			return at, errdefs.Newf(errdefs.InvalidArgument, op, "%q is no number of an image", tag)
		}
		tag = ""
	}
	at.tag = tag
	if at.ref, err = ocilayout.NewReference(path, tag); err != nil {
		return at, fileError(op, err, errdefs.InvalidArgument)
	}
	if at.archive {
		at.ref = archiveReference{at.ref}
	}
	return at, nil
}

func (at location) open() (files, error) {
	path := at.ref.PolicyConfigurationIdentity()
	if at.archive {
		return openArchive(path)
	}
	return openDir(path)
}

// archiveReference is what package oci/archive of containers/image makes, which would
// link everything that unpacks archives: a path, but of another transport.
type archiveReference struct{ types.ImageReference }

// Transport implements [types.ImageReference].
func (r archiveReference) Transport() types.ImageTransport {
	return archiveTransport{r.ImageReference.Transport()}
}

type archiveTransport struct{ types.ImageTransport }

// Name implements [types.ImageTransport]; the scopes of a signature policy are under it.
func (archiveTransport) Name() string { return strings.TrimSuffix(Archive, ":") }
