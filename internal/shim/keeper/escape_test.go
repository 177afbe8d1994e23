package keeper

import (
	"context"
	"errors"
	"fmt"
	"testing"

	. "github.com/onsi/gomega"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestEscapeErrors(t *testing.T) {
	t.Parallel()
	const text = "pull r/a: GET /v2/?scope=repository%3Aa: 100% refused, %d %w"
	for name, tc := range map[string]struct{ err, want error }{
		"none":   {nil, nil},
		"plain":  {status.Error(codes.NotFound, "gone"), status.Error(codes.NotFound, "gone")},
		"status": {status.Error(codes.PermissionDenied, text), status.Error(codes.PermissionDenied, "pull r/a: GET /v2/?scope=repository%%3Aa: 100%% refused, %%d %%w")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			resp, err := EscapeErrors(t.Context(), nil, nil, func(context.Context, func(any) error) (any, error) { return "r", tc.err })
			g.Expect(resp).To(Equal("r"))
			if tc.want == nil {
				g.Expect(err).NotTo(HaveOccurred())
				return
			}
			g.Expect(err).To(MatchError(tc.want))
			g.Expect(status.Code(err)).To(Equal(status.Code(tc.want)))
			// What CRI-O's FromGRPC makes of it.
			got := fmt.Errorf(status.Convert(err).Message()+": %w", errors.New("class"))
			g.Expect(got).To(MatchError(status.Convert(tc.err).Message() + ": class"))
		})
	}
}
