package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/husk-cri/husk/internal/config"
	"github.com/husk-cri/husk/internal/front/forward"
	huskv1 "github.com/husk-cri/husk/pkg/api/husk/v1"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// resolveTimeout bounds the question to the daemon: it asks no registry.
const resolveTimeout = 10 * time.Second

func resolveCommand() *cli.Command {
	return &cli.Command{
		Name:      "resolve",
		Usage:     "show what a name stands for on this node, CRI-O's own images included",
		UsageText: "husk resolve [--runtime-handler NAME] [--format text|json|TEMPLATE] REFERENCE|ID",
		Description: "Asks the husk that serves on the configured socket for every image that a reference, a short name, " +
			"an image ID or a prefix of one stands for, the one that kubelet would be answered first. No registry is asked.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "runtime-handler", Usage: "only images that pods of the runtime handler `NAME` can start from"},
			formatFlag(formatText),
		},
		Action: resolve,
	}
}

func resolve(c *cli.Context) error {
	name, err := oneArg(c, "a reference or an image ID")
	if err != nil {
		return err
	}
	conf, err := config.Load(c.String("config"))
	if err != nil {
		return err
	}
	images, err := askHusk(c.Context, conf.Listen, &huskv1.ResolveImageRequest{Image: name, RuntimeHandler: c.String("runtime-handler")})
	if err != nil {
		return err
	}
	views := make([]resolvedView, 0, len(images))
	for _, image := range images {
		views = append(views, newResolvedView(image))
	}
	return show(c, views, func(w io.Writer) error {
		for i, v := range views {
			if i > 0 {
				if _, err := fmt.Fprintln(w); err != nil {
					return err
				}
			}
			if err := v.print(w); err != nil {
				return err
			}
		}
		return nil
	})
}

// askHusk asks the husk that listens on the socket. Its errors keep their kind.
func askHusk(ctx context.Context, socket string, request *huskv1.ResolveImageRequest) (_ []*huskv1.Image, err error) {
	op := "resolve " + request.GetImage()
	conn, err := grpc.NewClient(forward.Target(socket), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, errdefs.New(errdefs.InvalidArgument, op, err)
	}
	defer func() {
		if closeErr := conn.Close(); err == nil && closeErr != nil {
			err = errdefs.New(errdefs.Internal, op, closeErr)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	var header, trailer metadata.MD
	answer, err := huskv1.NewImageServiceClient(conn).ResolveImage(ctx, request, grpc.Header(&header), grpc.Trailer(&trailer))
	text := status.Convert(err).Message()
	switch status.Code(err) {
	case codes.OK:
		return answer.GetImages(), nil
	case codes.NotFound:
		return nil, errdefs.Newf(errdefs.NotFound, op, "%s", text)
	case codes.InvalidArgument:
		return nil, errdefs.Newf(errdefs.InvalidArgument, op, "%s", text)
	case codes.Unavailable:
		// Every answer of a gRPC server has a content type: then husk serves, and CRI-O is missing.
		if len(header.Get("content-type"))+len(trailer.Get("content-type")) > 0 {
			return nil, errdefs.Newf(errdefs.Unavailable, op, "%s", text)
		}
		return nil, errdefs.Newf(errdefs.Unavailable, op, "does a husk serve on %s? %s", socket, text)
	case codes.Unimplemented:
		return nil, errdefs.Newf(errdefs.Unavailable, op, "who answers on %s is no husk, or an old one: %s", socket, text)
	case codes.DeadlineExceeded:
		return nil, errdefs.Newf(errdefs.DeadlineExceeded, op, "no answer within %s from the husk on %s, or from the CRI-O behind it", resolveTimeout, socket)
	default:
		return nil, errdefs.Newf(errdefs.Internal, op, "%s", text)
	}
}

// The words for who holds an image.
const (
	heldByHusk = "husk"
	heldByCRIO = "cri-o"
)

// resolvedView is an image of the node as resolve shows it. Its names, in JSON and in
// templates, are an interface: they may be added to, not changed.
type resolvedView struct {
	ImageID         string     `json:"image_id"`
	References      []string   `json:"references"`
	ManifestDigest  string     `json:"manifest_digest"`
	IndexDigests    []string   `json:"index_digests"`
	Platform        string     `json:"platform"`
	Layers          int        `json:"layers"`
	EncryptedLayers int        `json:"encrypted_layers"`
	LayerBytes      int64      `json:"layer_bytes"`
	StoredBytes     int64      `json:"stored_bytes"`
	User            string     `json:"user"`
	RuntimeHandlers []string   `json:"runtime_handlers"`
	HeldBy          string     `json:"held_by"`
	PulledAt        *time.Time `json:"pulled_at,omitempty"`
}

func newResolvedView(image *huskv1.Image) resolvedView {
	v := resolvedView{
		ImageID: image.GetImageId(), References: notNil(image.GetReferences()), ManifestDigest: image.GetManifestDigest(),
		IndexDigests: notNil(image.GetIndexDigests()), Platform: image.GetPlatform(), Layers: int(image.GetLayers()),
		EncryptedLayers: int(image.GetEncryptedLayers()), LayerBytes: int64(image.GetLayerBytes()),
		StoredBytes: int64(image.GetStoredBytes()), User: image.GetUser(), RuntimeHandlers: notNil(image.GetRuntimeHandlers()),
	}
	switch image.GetSource() {
	case huskv1.Source_SOURCE_RECORD:
		v.HeldBy = heldByHusk
	case huskv1.Source_SOURCE_CRIO:
		v.HeldBy = heldByCRIO
	case huskv1.Source_SOURCE_UNSPECIFIED: // a newer husk's word
	}
	if at := image.GetPulledAt(); at != 0 {
		pulled := time.Unix(0, at).UTC()
		v.PulledAt = &pulled
	}
	return v
}

// notNil is [] in JSON, where nil would be null.
func notNil(list []string) []string { return append([]string{}, list...) }

// print shows the image to people, one fact a line.
func (v resolvedView) print(w io.Writer) error {
	layers := fmt.Sprintf("%d (%d encrypted), %s, not on this host", v.Layers, v.EncryptedLayers, humanBytes(v.LayerBytes))
	handlers := strings.Join(v.RuntimeHandlers, ", ")
	if v.HeldBy == heldByCRIO {
		layers, handlers = fmt.Sprintf("%d, on this host", v.Layers), "all that do not pull in the guest"
	}
	pulled := ""
	if v.PulledAt != nil {
		pulled = v.PulledAt.Format(time.RFC3339)
	}
	for _, line := range []struct{ name, value string }{
		{"image ID", v.ImageID},
		{"references", strings.Join(v.References, "\n                 ")},
		{"manifest", v.ManifestDigest},
		{"indexes", strings.Join(v.IndexDigests, "\n                 ")},
		{"platform", oneLine(v.Platform)},
		{"layers", layers},
		{"on host", humanBytes(v.StoredBytes)},
		{"user", oneLine(v.User)},
		{"held by", v.HeldBy},
		{"handlers", handlers},
		{"pulled", pulled},
	} {
		if line.value == "" {
			continue
		}
		if _, err := fmt.Fprintf(w, "%-15s  %s\n", line.name+":", line.value); err != nil {
			return err
		}
	}
	return nil
}
