package bundlegen

// ImageMount is an image whose content a container sees, read-only, at a path: the
// image volume of KEP-4639 and the CRI's Mount.image. It travels in the annotation
// husk.dev/image-mounts from the front, which knows what was pulled, to the shim, which
// has the layers.
type ImageMount struct {
	// Reference is the image, repository@digest.
	Reference string `json:"reference"`
	// Destination is the path in the container.
	Destination string `json:"destination"`
	// SubPath is the directory or file of the image that is mounted; empty is all of it.
	SubPath string `json:"subPath,omitempty"`
}
