package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/husk-cri/husk/internal/guest/mux"
	"github.com/husk-cri/husk/pkg/api/cdh"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// errorPrefix begins the text of every error, as in CDH, whose callers look for it.
const errorPrefix = "[CDH] [ERROR]: Image Pull error: "

// Serve answers on a Unix socket that only root may use until ctx ends, and then removes
// it. What is no image pull is forwarded to the configured CDH.
func (g *Guest) Serve(ctx context.Context, socket string) (err error) {
	l, err := listen(ctx, socket)
	if err != nil {
		return errdefs.New(errdefs.Internal, "listen on "+socket, err)
	}
	defer func() {
		if e := os.Remove(socket); !errors.Is(e, os.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}()
	s := mux.Server{
		Methods:  map[string]mux.Method{cdh.ImagePullService + "/" + cdh.PullImage: g.pullImage},
		Upstream: g.opts.CDHSocket,
		Log:      g.opts.Log,
	}
	g.opts.Log.Info("serving", "socket", socket, "cdh", g.opts.CDHSocket)
	return s.Serve(ctx, l)
}

// listen makes the socket under another name, so that it is never there with a mode that
// lets others in, and a dead one is replaced. A living one stays.
func listen(ctx context.Context, socket string) (*net.UnixListener, error) {
	if conn, err := new(net.Dialer).DialContext(ctx, "unix", socket); err == nil {
		return nil, errors.Join(errors.New("another process answers there"), conn.Close())
	}
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(filepath.Dir(socket), ".husk-") // of mode 0700
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.Remove(dir) }()
	temp := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // it has another name by then
	if err = os.Chmod(temp, 0o600); err == nil {
		err = os.Rename(temp, socket)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close(), os.Remove(temp))
	}
	return l, nil
}

// pullImage is api.ImagePullService/PullImage.
func (g *Guest) pullImage(ctx context.Context, payload []byte) (proto.Message, error) {
	var req cdh.ImagePullRequest
	if err := proto.Unmarshal(payload, &req); err != nil {
		return nil, status.Error(codes.InvalidArgument, fmt.Sprintf("unmarshal request: %v", err))
	}
	var pulled Pulled
	err := error(errdefs.Newf(errdefs.InvalidArgument, "pull", "no bundle_path"))
	if req.GetBundlePath() != "" {
		pulled, err = g.Pull(ctx, req.GetImageUrl(), req.GetBundlePath(), nil)
	}
	if err != nil {
		g.opts.Log.Warn("pull failed", "image", errdefs.Redact(req.GetImageUrl()), "bundle", req.GetBundlePath(),
			"kind", errdefs.KindOf(err).String(), "error", err.Error())
		return nil, status.Error(codes.Internal, errorPrefix+errdefs.Redact(err.Error()))
	}
	g.opts.Log.Info("pulled", "image", errdefs.Redact(req.GetImageUrl()), "bundle", req.GetBundlePath(), "digest", pulled.ManifestDigest,
		"layers", pulled.FetchedLayers, "bytes", pulled.FetchedBytes)
	return &cdh.ImagePullResponse{ManifestDigest: pulled.ManifestDigest}, nil
}
