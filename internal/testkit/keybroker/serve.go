package keybroker

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/ttrpc"
	pb "github.com/containers/ocicrypt/utils/keyprovider"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/protoadapt"
)

// Service is the full name of the key provider service.
const Service = "keyprovider.KeyProviderService"

// Endpoint is one way to reach a broker.
type Endpoint struct {
	// Method is "grpc", "ttrpc" or "cmd", and Address what stands for it in an
	// ocicrypt_keyprovider.conf.
	Method  string
	Address any
	stop    func()
}

// Stop ends the endpoint: its address is gone. It may be called again.
func (e *Endpoint) Stop() { e.stop() }

// Config writes an ocicrypt_keyprovider.conf that knows the endpoint by the given
// name, and returns its path.
func (e *Endpoint) Config(t TB, name string) string {
	t.Helper()
	data, err := json.Marshal(map[string]any{"key-providers": map[string]any{name: map[string]any{e.Method: e.Address}}})
	if err != nil {
		t.Fatalf("encode configuration: %v", err)
	}
	path := filepath.Join(scratch(t), "ocicrypt_keyprovider.conf")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatalf("write configuration: %v", err)
	}
	return path
}

// scratch makes a directory whose path is short enough for a socket.
func scratch(t TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "broker")
	if err != nil {
		t.Fatalf("make directory: %v", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// GRPC serves on a port of the loopback.
func (b *Broker) GRPC(t TB) *Endpoint {
	t.Helper()
	listener := listen(t, "tcp", "127.0.0.1:0")
	server := grpc.NewServer()
	pb.RegisterKeyProviderServiceServer(server, b)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return &Endpoint{Method: "grpc", Address: listener.Addr().String(), stop: server.Stop}
}

// TTRPC serves on a Unix socket.
func (b *Broker) TTRPC(t TB) *Endpoint {
	t.Helper()
	path := filepath.Join(scratch(t), "sock")
	listener := listen(t, "unix", path)
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatalf("make server: %v", err)
	}
	server.RegisterService(Service, &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{
		"WrapKey": b.ttrpcMethod, "UnWrapKey": b.ttrpcMethod,
	}})
	go func() { _ = server.Serve(t.Context(), listener) }()
	stop := sync.OnceFunc(func() {
		_ = server.Close()
		_ = listener.Close() // where Serve has not yet begun, the server does not know it
	})
	t.Cleanup(stop)
	return &Endpoint{Method: "ttrpc", Address: "unix://" + path, stop: stop}
}

func (b *Broker) ttrpcMethod(ctx context.Context, unmarshal func(any) error) (any, error) {
	in := &pb.KeyProviderKeyWrapProtocolInput{}
	// ocicrypt's messages are of protobuf's first Go API.
	if err := unmarshal(protoadapt.MessageV2Of(in)); err != nil {
		return nil, err
	}
	out, err := b.rpc(ctx, in)
	if err != nil {
		return nil, err
	}
	return protoadapt.MessageV2Of(out), nil
}

func listen(t TB, network, address string) net.Listener {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), network, address)
	if err != nil {
		t.Fatalf("listen: %v", err)
	}
	return listener
}

// commandArg is the first argument of a test binary that is to be the command.
const commandArg = "husk-test-keybroker"

// Command serves as a command: the test binary again, whose TestMain must begin with
// [RunCommand]. It hands each request to the broker through a socket.
func (b *Broker) Command(t TB) *Endpoint {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatalf("find the test binary: %v", err)
	}
	path := filepath.Join(scratch(t), "sock")
	listener := listen(t, "unix", path)
	var served sync.WaitGroup
	served.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			served.Go(func() { b.serveCommand(t.Context(), conn) })
		}
	})
	stop := sync.OnceFunc(func() { _ = listener.Close() })
	t.Cleanup(stop)
	return &Endpoint{Method: "cmd", Address: map[string]any{"path": self, "args": []string{commandArg, path}}, stop: stop}
}

// commandAnswer is what the broker tells the command to do.
type commandAnswer struct {
	Stdout []byte
	Stderr string
	Exit   int
}

func (b *Broker) serveCommand(ctx context.Context, conn net.Conn) {
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var request []byte
	if json.NewDecoder(conn).Decode(&request) != nil {
		return
	}
	go func() { // the command says no more; its end is that of the connection
		_, _ = io.Copy(io.Discard, conn)
		cancel()
	}()
	out, err := b.answer(ctx, request)
	answer := commandAnswer{Stdout: out}
	if err != nil {
		answer = commandAnswer{Stderr: err.Error(), Stdout: []byte(err.Error()), Exit: 3}
	}
	_ = json.NewEncoder(conn).Encode(answer)
}

// RunCommand does the work of the command if this process is one, and says so. A
// TestMain calls it first, and returns when it is true.
func RunCommand() bool {
	if len(os.Args) != 3 || os.Args[1] != commandArg {
		return false
	}
	answer, err := relay(os.Args[2])
	if err != nil {
		_, _ = io.WriteString(os.Stderr, err.Error())
		os.Exit(4)
	}
	_, _ = io.WriteString(os.Stderr, answer.Stderr)
	_, _ = os.Stdout.Write(answer.Stdout)
	if answer.Exit != 0 {
		os.Exit(answer.Exit)
	}
	return true
}

func relay(socket string) (commandAnswer, error) {
	var answer commandAnswer
	if len(os.Environ()) > 1 {
		return answer, errors.New("the environment is not clean")
	}
	request, err := io.ReadAll(os.Stdin)
	if err != nil {
		return answer, err
	}
	conn, err := (&net.Dialer{}).DialContext(context.Background(), "unix", socket)
	if err != nil {
		return answer, err
	}
	defer func() { _ = conn.Close() }()
	if err := json.NewEncoder(conn).Encode(request); err != nil {
		return answer, err
	}
	return answer, json.NewDecoder(conn).Decode(&answer)
}
