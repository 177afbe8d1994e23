package sandboxes_test

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"os"
	"testing"
	"time"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/sandboxes"
	"github.com/husk-cri/husk/internal/testkit/shims"
	shimv1 "github.com/husk-cri/husk/pkg/api/shim/v1"
	"github.com/husk-cri/husk/pkg/imageref"
	"github.com/husk-cri/husk/pkg/registryauth"
)

const (
	podID   = "sandbox-1"
	digestA = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	app     = "registry.test/app@sha256:" + digestA
	secret  = "s3cr3t/p%41ss"
	imageID = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

// stateDir is short enough for sockets.
func stateDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sb")
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func request(g Gomega, progress func(sandboxes.Progress)) sandboxes.PullRequest {
	ref, err := imageref.ParseReference(app)
	g.Expect(err).NotTo(HaveOccurred())
	return sandboxes.PullRequest{
		Sandbox: podID, Reference: ref, Progress: progress,
		Credentials: registryauth.Credentials{Username: "u", Password: secret, IdentityToken: "identity", RegistryToken: "bearer", Auth: "dXNlcjpwYXNz"},
	}
}

func image() *shimv1.Image {
	return &shimv1.Image{
		Reference: app, ManifestDigest: "sha256:" + digestA, ImageId: imageID, Layers: 2, Bytes: 100,
		PulledAt: time.Unix(1000, 0).UnixNano(), Took: int64(time.Second), Containers: []string{"c1"},
	}
}

func done(stream shimv1.Images_PullImageServer) error {
	return stream.Send(&shimv1.PullImageResponse{Result: image()})
}

// frame is one ttrpc message without flags.
func frame(stream uint32, kind byte, payload []byte) []byte {
	f := make([]byte, 10, 10+len(payload))
	binary.BigEndian.PutUint32(f, uint32(len(payload)))
	binary.BigEndian.PutUint32(f[4:], stream)
	f[8] = kind
	return append(f, payload...)
}

// raw serves whatever answer writes to each connection, once a request has come.
func raw(t *testing.T, dir, id string, answer func(net.Conn)) {
	t.Helper()
	listener := shims.Listen(t, dir, id)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				if _, err := conn.Read(make([]byte, 1<<16)); err == nil {
					answer(conn)
				}
				_, _ = io.Copy(io.Discard, conn)
			}()
		}
	}()
}

// hang waits for the end of the call.
func hang(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
