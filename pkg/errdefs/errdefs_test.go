package errdefs

import (
	"context"
	"errors"
	"fmt"
	"testing"

	. "github.com/onsi/gomega"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestTable is the golden table: what each kind is called, and what a CRI client sees.
func TestTable(t *testing.T) {
	t.Parallel()
	golden := map[Kind]struct {
		name string
		code codes.Code
		text string
	}{
		Internal:            {"internal", codes.Internal, "pull r/a:1: why"},
		InvalidArgument:     {"invalid-argument", codes.InvalidArgument, "pull r/a:1: why"},
		NotFound:            {"not-found", codes.NotFound, "pull r/a:1: why"},
		Unauthorized:        {"unauthorized", codes.Unauthenticated, "pull r/a:1: why"},
		RegistryUnavailable: {"registry-unavailable", codes.Unknown, "RegistryUnavailable: pull r/a:1: why"},
		PolicyRefused:       {"policy-refused", codes.Unknown, "SignatureValidationFailed: pull r/a:1: why"},
		DigestMismatch:      {"digest-mismatch", codes.DataLoss, "pull r/a:1: why"},
		TooLarge:            {"too-large", codes.ResourceExhausted, "pull r/a:1: why"},
		NotAnImage:          {"not-an-image", codes.InvalidArgument, "pull r/a:1: why"},
		NoPlatform:          {"no-platform", codes.NotFound, "pull r/a:1: why"},
		InUse:               {"in-use", codes.FailedPrecondition, "pull r/a:1: why"},
		KeyUnavailable:      {"key-unavailable", codes.PermissionDenied, "pull r/a:1: why"},
		UserUnresolvable:    {"user-unresolvable", codes.InvalidArgument, "pull r/a:1: why"},
		Unavailable:         {"unavailable", codes.Unavailable, "pull r/a:1: why"},
		Unsupported:         {"unsupported", codes.Unimplemented, "pull r/a:1: why"},
		Canceled:            {"canceled", codes.Canceled, "pull r/a:1: why"},
		DeadlineExceeded:    {"deadline-exceeded", codes.DeadlineExceeded, "pull r/a:1: why"},
	}
	g := NewWithT(t)
	g.Expect(golden).To(HaveLen(len(Kinds())))
	for _, k := range Kinds() {
		want := golden[k]
		g.Expect(k.String()).To(Equal(want.name))
		g.Expect(ParseKind(want.name)).To(Equal(k))
		err := fmt.Errorf("outer: %w", New(k, "pull r/a:1", errors.New("why")))
		g.Expect(KindOf(err)).To(Equal(k))
		s := status.Convert(ToGRPC(New(k, "pull r/a:1", errors.New("why"))))
		g.Expect(s.Code()).To(Equal(want.code), want.name)
		g.Expect(s.Message()).To(Equal(want.text))
		g.Expect(New(k, "pull r/a:1", errors.New("why")).GRPCStatus().Message()).To(Equal(want.text))
	}
	g.Expect(ParseKind("from-the-future")).To(Equal(Internal))
}

func TestToGRPC(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	g.Expect(ToGRPC(nil)).To(Succeed())
	backend := status.Error(codes.Unknown, "as CRI-O said it")
	g.Expect(ToGRPC(backend)).To(MatchError(backend), "an error of CRI-O is not masked")
	g.Expect(status.Code(ToGRPC(context.Canceled))).To(Equal(codes.Canceled))
	g.Expect(status.Code(ToGRPC(fmt.Errorf("x: %w", context.DeadlineExceeded)))).To(Equal(codes.DeadlineExceeded))
	g.Expect(status.Code(ToGRPC(errors.New("plain")))).To(Equal(codes.Internal), "nothing reaches kubelet as Unknown")
	g.Expect(Is(nil, Internal)).To(BeFalse())
}

func TestRedact(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"no secret here": "no secret here",
		`Get "https://user:hunter2@reg.io/v2/": EOF`:                   "Get \"https://REDACTED@reg.io/v2/\": EOF",
		"https://t.io/token?scope=repository%3Aa&access_token=hunter2": "https://t.io/token?access_token=REDACTED&scope=repository%3Aa",
		"header Authorization: Basic dXNlcjpodW50ZXIy failed":          "header Authorization: Basic REDACTED failed",
		"bearer eyJhbGciOi.J9.x was refused":                           "bearer REDACTED was refused",
		"redirected to https://t.io/done#access_token=hunter2":         "redirected to https://t.io/done#REDACTED",
		"https://u:hunter2@%zz/ is bad":                                "https://REDACTED is bad",
		`pull "alice:hunter2@reg.io:5000/app:1" failed`:                `pull "REDACTED@reg.io:5000/app:1" failed`,
		"pull reg.io:5000/app:1@sha256:00ff: gone":                     "pull reg.io:5000/app:1@sha256:00ff: gone",
		"https://reg.io/v2/a?digest=sha256:00, then more":              "https://reg.io/v2/a?digest=sha256%3A00, then more",
	} {
		g := NewWithT(t)
		g.Expect(Redact(in)).To(Equal(want))
		g.Expect(New(Internal, "x", errors.New(in)).Error()).NotTo(ContainSubstring("hunter2"))
	}
}
