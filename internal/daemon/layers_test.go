package daemon

import (
	"context"
	"errors"
	"fmt"
	"testing"

	. "github.com/onsi/gomega"
	otelcodes "go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/husk-cri/husk/internal/front"
	"github.com/husk-cri/husk/internal/sandboxes"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
	"github.com/husk-cri/husk/pkg/registryauth"
)

// podLayers is a LayerPuller that gets half of an image, and then fails with an error if
// it has one.
type podLayers struct {
	front.LayerPuller
	fail error
}

func (p podLayers) Pull(_ context.Context, req sandboxes.PullRequest) (sandboxes.Image, error) {
	for _, at := range []sandboxes.Progress{{Layers: 2, Bytes: 10}, {Layers: 2, LayersDone: 1, Bytes: 10, BytesDone: 5}} {
		if req.Progress != nil {
			req.Progress(at)
		}
	}
	return sandboxes.Image{Reference: req.Reference.String(), Layers: 2}, p.fail
}

// TestLayersHaveASpan below the call's, with how far it came and how it ended, and with no
// word that a pod or a registry has written.
func TestLayersHaveASpan(t *testing.T) {
	t.Parallel()
	const secret = "s3cr3t"
	ref, err := imageref.ParseReference("registry.local/app@sha256:49816b92997f4373c58584bf22568f3d50bfd4b0e75793939e9e50a4744a2863")
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	for name, c := range map[string]struct {
		fail error
		kind string
	}{
		"ok":     {nil, ""},
		"a kind": {errdefs.Newf(errdefs.KeyUnavailable, "pull", secret), "key-unavailable"},
		"plain":  {errors.New(secret), "internal"},
		"old":    {sandboxes.ErrOldShim, errdefs.KindOf(sandboxes.ErrOldShim).String()},
	} {
		g := NewWithT(t)
		kept := tracetest.NewSpanRecorder()
		provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(kept))
		ctx, call := provider.Tracer("test").Start(t.Context(), "PullImage")
		var told []sandboxes.Progress
		got, err := tracedLayers{podLayers{fail: c.fail}}.Pull(ctx, sandboxes.PullRequest{
			Sandbox: "pod-1", Reference: ref, Credentials: registryauth.Credentials{Username: "alice", Password: secret},
			Progress: func(p sandboxes.Progress) { told = append(told, p) },
		})
		g.Expect(errors.Is(err, c.fail)).To(BeTrue(), name)
		g.Expect(got.Reference).To(Equal(ref.String()), name)
		g.Expect(told).To(HaveLen(2), "%s: who asked is told as ever", name)

		g.Expect(kept.Ended()).To(HaveLen(1), name)
		span := kept.Ended()[0]
		g.Expect(span.Name()).To(Equal("pull image layers"))
		g.Expect(span.Parent().SpanID()).To(Equal(call.SpanContext().SpanID()))
		notes := map[string]any{}
		for _, a := range span.Attributes() {
			notes[string(a.Key)] = a.Value.AsInterface()
		}
		want := map[string]any{
			"husk.image": ref.String(), "husk.sandbox": "pod-1", "husk.layers": int64(1), "husk.layers.bytes": int64(5),
		}
		if c.kind != "" {
			want["husk.error.kind"] = c.kind
			g.Expect(span.Status()).To(Equal(sdktrace.Status{Code: otelcodes.Error, Description: c.kind}), name)
		} else {
			g.Expect(span.Status().Code).To(Equal(otelcodes.Unset))
		}
		g.Expect(notes).To(Equal(want), name)
		g.Expect(span.Events()).To(BeEmpty(), name)
		g.Expect(fmt.Sprint(span)).NotTo(ContainSubstring(secret), name)
	}
}

// TestLayersWithoutASpan: nobody traces the call.
func TestLayersWithoutASpan(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	got, err := tracedLayers{podLayers{}}.Pull(t.Context(), sandboxes.PullRequest{})
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(got.Layers).To(Equal(2))
}
