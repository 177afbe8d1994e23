package front

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// TestForwardingAllocatesNothing: kubelet makes many such calls each second.
func TestForwardingAllocatesNothing(t *testing.T) { // not parallel: it counts
	s := &Server{Collaborators: Collaborators{Observer: unobserved{}, Log: slog.New(slog.DiscardHandler)}}
	ctx := context.Background()
	allocated := testing.AllocsPerRun(100, func() { s.forwarded(ctx, "/runtime.v1.RuntimeService/Version", time.Second, nil) })
	NewWithT(t).Expect(allocated).To(BeZero())
}

func TestKindOf(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		want errdefs.Kind
	}{
		{errdefs.New(errdefs.PolicyRefused, "pull", nil), errdefs.PolicyRefused},
		{errors.Join(errors.New("x"), errdefs.New(errdefs.InUse, "remove", status.Error(codes.NotFound, ""))), errdefs.InUse},
		{context.Canceled, errdefs.Canceled},
		{errors.New("plain"), errdefs.Internal},
		{status.Error(codes.NotFound, "CRI-O's"), errdefs.NotFound},
		{status.Error(codes.Unavailable, "CRI-O's"), errdefs.Unavailable},
		{status.Error(codes.DeadlineExceeded, "CRI-O's"), errdefs.DeadlineExceeded},
		{status.Error(codes.Canceled, "CRI-O's"), errdefs.Canceled},
		{status.Error(codes.InvalidArgument, "CRI-O's"), errdefs.InvalidArgument},
		{status.Error(codes.Unimplemented, "CRI-O's"), errdefs.Unsupported},
		{status.Error(codes.Unknown, "CRI-O's"), errdefs.Internal},
	} {
		NewWithT(t).Expect(kindOf(c.err)).To(Equal(c.want), "%v", c.err)
	}
}

func TestBounded(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	g.Expect(bounded("registry.local/app:1")).To(Equal("registry.local/app:1"))
	g.Expect(len(bounded(strings.Repeat("x", 1<<20)))).To(BeNumerically("<=", maxLogValue+len("...")))
	g.Expect(bounded("https://u:secret@r/")).NotTo(ContainSubstring("secret"))
}
