package daemon

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/husk-cri/husk/internal/front"
	"github.com/husk-cri/husk/internal/sandboxes"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// layersSpan is the span of one pull of layers in a pod. Its name and attributes are
// stable, as those of package tracing: dashboards use them.
const layersSpan = "pull image layers"

// tracedLayers has a span for each pull of layers, below the span of the PullImage that
// asks for it. Without one it is the LayerPuller alone.
type tracedLayers struct{ front.LayerPuller }

var _ front.LayerPuller = tracedLayers{}

// Pull implements front.LayerPuller. Numbers and kinds go into the span: never the text of
// an error, which a registry or a pod may have written, nor a credential.
func (l tracedLayers) Pull(ctx context.Context, req sandboxes.PullRequest) (sandboxes.Image, error) {
	call := trace.SpanFromContext(ctx)
	if !call.IsRecording() {
		return l.LayerPuller.Pull(ctx, req)
	}
	ctx, span := call.TracerProvider().Tracer("github.com/husk-cri/husk").Start(ctx, layersSpan, trace.WithAttributes(
		attribute.String("husk.image", req.Reference.String()), attribute.String("husk.sandbox", req.Sandbox)))
	defer span.End()
	var far sandboxes.Progress // told by the goroutine that pulls: Pull returns after it
	tell := req.Progress
	req.Progress = func(p sandboxes.Progress) {
		far = p
		if tell != nil {
			tell(p)
		}
	}
	got, err := l.LayerPuller.Pull(ctx, req)
	span.SetAttributes(attribute.Int("husk.layers", far.LayersDone), attribute.Int64("husk.layers.bytes", far.BytesDone))
	if err != nil {
		kind := errdefs.KindOf(err).String()
		span.SetAttributes(attribute.String("husk.error.kind", kind))
		span.SetStatus(otelcodes.Error, kind)
	}
	return got, err
}
