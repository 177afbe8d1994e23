package main

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v2"

	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

func formatFlag() cli.Flag {
	return &cli.StringFlag{
		Name: "format", Usage: "print as `FORMAT`: text or json", Value: "text",
		Action: func(_ *cli.Context, format string) error {
			if format != "text" && format != "json" {
				return errdefs.Newf(errdefs.InvalidArgument, "--format", "%q is neither text nor json", format)
			}
			return nil
		},
	}
}

// noArgs refuses arguments of a command that takes none.
func noArgs(c *cli.Context) error {
	if c.NArg() > 0 {
		return errdefs.Newf(errdefs.InvalidArgument, c.Command.Name, "takes no arguments, got %q", c.Args().First())
	}
	return nil
}

// oneArg returns the command's only argument.
func oneArg(c *cli.Context, what string) (string, error) {
	if c.NArg() != 1 {
		return "", errdefs.Newf(errdefs.InvalidArgument, c.Command.Name, "want %s, got %d arguments", what, c.NArg())
	}
	return c.Args().First(), nil
}

// imageView is a record as the commands show it to scripts.
type imageView struct {
	ImageID         string          `json:"image_id"`
	ManifestDigest  string          `json:"manifest_digest"`
	StorageID       string          `json:"storage_id"`
	References      []referenceView `json:"references"`
	User            string          `json:"user"`
	Layers          int             `json:"layers"`
	EncryptedLayers int             `json:"encrypted_layers"`
	StoredBytes     int64           `json:"stored_bytes"`
	LayerBytes      int64           `json:"layer_bytes"`
	Config          *imgspec.Image  `json:"config,omitempty"`
}

type referenceView struct {
	Reference string    `json:"reference"`
	Pinned    string    `json:"pinned"`
	PulledAt  time.Time `json:"pulled_at"`
}

func newImageView(r imageref.Record) imageView {
	v := imageView{
		ImageID: r.ImageID().String(), ManifestDigest: r.Manifest.String(), StorageID: r.StorageID.String(),
		References: make([]referenceView, 0, len(r.References)), User: r.Image.Config.User,
		Layers: r.Layers, EncryptedLayers: r.EncryptedLayers, StoredBytes: r.StoredBytes, LayerBytes: r.LayerBytes,
	}
	for _, p := range r.References {
		v.References = append(v.References, referenceView{p.Reference.String(), p.Pinned().String(), p.PulledAt})
	}
	return v
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// humanBytes prints a size the way podman and crictl do: decimal units.
func humanBytes(n int64) string {
	units := []string{"B", "kB", "MB", "GB", "TB", "PB", "EB"}
	value, at := float64(n), 0
	for value >= 999.5 && at < len(units)-1 { // what would print as 1e+03
		value /= 1000
		at++
	}
	if at == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.3g %s", value, units[at])
}
