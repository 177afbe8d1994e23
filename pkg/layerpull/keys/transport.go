package keys

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"syscall"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// service is the full name of the key provider service. Its messages have one bytes
// field with the number 1, so on the wire they are what a BytesValue is. Generating
// them here would register the service's name a second time beside ocicrypt's own
// code, which protobuf answers with a panic at start.
const service = "keyprovider.KeyProviderService"

// rpcOverhead is what RPC framing may add to a reply, in bytes.
const rpcOverhead = 4 << 10

// callCommand runs the provider's command: the request on its standard input, the
// reply on its standard output. What it says on standard error is thrown away, since
// it may say anything. Its environment is empty but for PATH: this process's may
// hold credentials, and LD_PRELOAD.
func (p Provider) callCommand(ctx context.Context, request []byte) ([]byte, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	out := &boundedBuffer{buf: make([]byte, 0, maxReplyBytes), full: cancel}
	cmd := exec.CommandContext(ctx, p.path, p.args...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Dir = "/"
	cmd.Stdin = bytes.NewReader(request)
	cmd.Stdout = out
	// A group of its own, so that what it started is killed with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = commandGrace
	err := cmd.Run()
	if err == nil && !out.overflow {
		return out.buf, nil
	}
	clear(out.buf)
	var exit *exec.ExitError
	switch {
	case out.overflow:
		return nil, errReplyTooLong
	case errors.As(err, &exit):
		return nil, fmt.Errorf("the command failed: %s", exit.ProcessState)
	case errors.Is(err, exec.ErrWaitDelay):
		return nil, errors.New("the command left a process behind that holds its output")
	}
	// It could not be started: a matter of the configuration, and of the kernel's words.
	return nil, fmt.Errorf("the command could not be run: %w", causeOf(err))
}

// boundedBuffer keeps what fits and gives up on the rest.
type boundedBuffer struct {
	buf      []byte
	overflow bool
	full     func()
}

// Write implements [io.Writer].
func (b *boundedBuffer) Write(data []byte) (int, error) {
	if len(b.buf)+len(data) > cap(b.buf) {
		b.overflow = true
		b.full()
		return 0, errReplyTooLong
	}
	b.buf = append(b.buf, data...)
	return len(data), nil
}

func (p Provider) callGRPC(ctx context.Context, method string, request []byte) (reply []byte, err error) {
	conn, err := grpc.NewClient(p.grpc,
		// As ocicrypt: the provider is a neighbour on this machine. A proxy is not.
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy(), grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReplyBytes+rpcOverhead)))
	if err != nil {
		return nil, errors.New("its gRPC address is malformed")
	}
	defer func() { _ = conn.Close() }()
	out := &wrapperspb.BytesValue{}
	if err := conn.Invoke(ctx, "/"+service+"/"+method, wrapperspb.Bytes(request), out); err != nil {
		return nil, rpcError(err)
	}
	return out.GetValue(), nil
}

func (p Provider) callTTRPC(ctx context.Context, method string, request []byte) ([]byte, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", strings.TrimPrefix(p.ttrpc, unixScheme))
	if err != nil {
		var errno syscall.Errno
		if errors.As(err, &errno) {
			return nil, fmt.Errorf("it cannot be reached: %w", errno)
		}
		return nil, errors.New("it cannot be reached")
	}
	// ttrpc would take 4 MiB, and read on for as much as a header says.
	client := ttrpc.NewClient(&boundedConn{Conn: conn, left: maxReplyBytes + rpcOverhead})
	defer func() { _ = client.Close() }()
	out := &wrapperspb.BytesValue{}
	if err := client.Call(ctx, service, method, wrapperspb.Bytes(request), out); err != nil {
		return nil, rpcError(err)
	}
	return out.GetValue(), nil
}

// boundedConn fails when the other side sends too much.
type boundedConn struct {
	net.Conn
	left int
}

// Read implements [net.Conn].
func (c *boundedConn) Read(buf []byte) (int, error) {
	if c.left <= 0 {
		return 0, io.ErrUnexpectedEOF
	}
	n, err := c.Conn.Read(buf[:min(len(buf), c.left)])
	c.left -= n
	return n, err
}

var errNoAnswer = errors.New("it gave no answer in time")

// rpcError keeps the code of an RPC's error and drops its text, which the provider
// chose.
func rpcError(err error) error {
	switch code := status.Code(err); code {
	case codes.Unavailable:
		return errors.New("it cannot be reached")
	case codes.DeadlineExceeded:
		return errNoAnswer
	case codes.ResourceExhausted: // grpc-go's own answer to a long reply too
		return errors.New("the reply is too long, or it refused (ResourceExhausted)")
	case codes.Unknown:
		// ttrpc's own errors too, such as that of a connection that broke.
		return errors.New("it failed or hung up")
	default:
		return fmt.Errorf("it refused (%s)", code)
	}
}
