package forward

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"

	. "github.com/onsi/gomega"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// FuzzForward sends messages that need not be protobuf, one way and back, by both ways
// a call takes through the front: what arrives is what was sent.
func FuzzForward(f *testing.F) {
	g := NewWithT(f)
	dir, err := os.MkdirTemp("", "husk") // short: the path of a socket has at most 107 bytes
	g.Expect(err).NotTo(HaveOccurred())
	f.Cleanup(func() { g.Expect(os.RemoveAll(dir)).To(Succeed()) })
	listen := func(name string) net.Listener {
		l, err := net.Listen("unix", filepath.Join(dir, name))
		g.Expect(err).NotTo(HaveOccurred())
		return l
	}
	echo := grpc.NewServer(grpc.ForceServerCodecV2(codec{}), grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		for {
			frame := new(Frame)
			if err := stream.RecvMsg(frame); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
			if err := stream.SendMsg(NewFrame(frame.Bytes())); err != nil {
				return err
			}
		}
	}))
	crio := listen("crio.sock")
	go func() { _ = echo.Serve(crio) }()
	f.Cleanup(echo.Stop)

	backend, err := NewBackend(filepath.Join(dir, "crio.sock"), Options{})
	g.Expect(err).NotTo(HaveOccurred())
	f.Cleanup(func() { _ = backend.Close() })
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	front := listen("front.sock")
	go func() {
		served <- backend.Serve(ctx, front, func(_ any, stream grpc.ServerStream) error {
			method, _ := grpc.MethodFromServerStream(stream)
			if method == "/a.A/Forward" {
				return backend.Forward(stream)
			}
			frame := new(Frame)
			if err := stream.RecvMsg(frame); err != nil {
				return err
			}
			answer, err := backend.Relay(stream, method, frame.Bytes())
			if err != nil {
				return err
			}
			return stream.SendMsg(answer)
		}, slog.New(slog.DiscardHandler))
	}()
	f.Cleanup(func() { stop(); g.Expect(<-served).To(Succeed()) })
	client, err := grpc.NewClient("unix:"+filepath.Join(dir, "front.sock"),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodecV2(codec{})))
	g.Expect(err).NotTo(HaveOccurred())
	f.Cleanup(func() { _ = client.Close() })

	f.Add([]byte{}, uint16(0))
	f.Add([]byte("\x0a\x03abc"), uint16(1))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0x0f}, uint16(9))
	f.Add([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), uint16(1000)) // tens of kilobytes
	f.Fuzz(func(t *testing.T, message []byte, repeat uint16) {
		message = bytes.Repeat(message, 1+int(repeat%4096))
		if len(message) > 1<<20 {
			t.Skip("longer than what is of interest")
		}
		for _, method := range []string{"/a.A/Forward", "/a.A/Relay"} {
			answer := new(Frame)
			if err := client.Invoke(t.Context(), method, NewFrame(bytes.Clone(message)), answer); err != nil {
				t.Fatalf("%s of %d bytes: %v", method, len(message), err)
			}
			if !bytes.Equal(answer.Bytes(), message) {
				t.Fatalf("%s of %d bytes came back as something else", method, len(message))
			}
		}
	})
}

// FuzzContains compares the search in a message that is in pieces with that in one
// piece.
func FuzzContains(f *testing.F) {
	f.Add([]byte("a list with husk.dev/record-id in it"), []byte("husk.dev/record-id"), uint8(3))
	f.Add([]byte("aaab"), []byte("aab"), uint8(1))
	f.Fuzz(func(t *testing.T, message, part []byte, size uint8) {
		if len(part) == 0 {
			t.Skip("the front looks for a mark")
		}
		var frame Frame
		for rest := message; len(rest) > 0; {
			n := min(len(rest), 1+int(size))
			frame.buffers = append(frame.buffers, NewFrame(rest[:n]).buffers...)
			rest = rest[n:]
		}
		if got, want := frame.Contains(part), bytes.Contains(message, part); got != want {
			t.Fatalf("got %v, want %v", got, want)
		}
	})
}
