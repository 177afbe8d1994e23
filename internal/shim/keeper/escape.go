package keeper

import (
	"context"
	"strings"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/status"
)

// EscapeErrors is for every server that CRI-O talks to: CRI-O takes the text of an
// error for a format (utils/errdefs/grpc.go, FromGRPC) and would garble a percent
// sign in it, such as that of an escaped URL.
func EscapeErrors(ctx context.Context, unmarshal ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
	resp, err := method(ctx, unmarshal)
	if s, ok := status.FromError(err); ok && strings.Contains(s.Message(), "%") {
		err = status.Error(s.Code(), strings.ReplaceAll(s.Message(), "%", "%%"))
	}
	return resp, err
}
