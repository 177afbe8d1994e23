// Package cdhclient is a client of the Confidential Data Hub and a fake of the hub and
// of the attestation agent, for tests of `husk guest`.
//
// It is written from the facts of the protocol alone and shares no code with what it
// tests: the messages are encoded here, field by field, as the .proto files of the
// guest-components say, so a wrong field number in Husk cannot hide itself.
package cdhclient

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
)

// The services that the client and the fakes speak.
const (
	imagePull   = "api.ImagePullService"
	getResource = "api.GetResourceService"
	attestation = "attestation_agent.AttestationAgentService"
)

// Client is a connection to a hub.
type Client struct{ ttrpc *ttrpc.Client }

// Dial connects to the hub at a Unix socket. The caller closes the client.
func Dial(ctx context.Context, socket string) (*Client, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	return &Client{ttrpc.NewClient(conn)}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.ttrpc.Close() }

// PullImage asks for an image in a bundle and returns the manifest's digest.
func (c *Client) PullImage(ctx context.Context, image, bundle string) (string, error) {
	resp, err := c.Call(ctx, imagePull, "PullImage", fields{1: []byte(image), 2: []byte(bundle)}.encode())
	if err != nil {
		return "", err
	}
	f, err := decode(resp)
	return string(f[1]), err
}

// GetResource asks for a resource of the key broker.
func (c *Client) GetResource(ctx context.Context, uri string) ([]byte, error) {
	resp, err := c.Call(ctx, getResource, "GetResource", fields{1: []byte(uri)}.encode())
	if err != nil {
		return nil, err
	}
	f, err := decode(resp)
	return f[1], err
}

// Call makes any request with an encoded message. An error is a gRPC status.
func (c *Client) Call(ctx context.Context, service, method string, payload []byte) ([]byte, error) {
	req, resp := newRaw(payload), newRaw(nil)
	if err := c.ttrpc.Call(ctx, service, method, req, resp); err != nil {
		return nil, err
	}
	return resp.bytes(), nil
}

// fields are the fields of a message, all of them strings or bytes.
type fields map[protowire.Number][]byte

func (f fields) encode() []byte {
	var out []byte
	for n := protowire.Number(1); int(n) <= len(f); n++ {
		if len(f[n]) > 0 { // proto3 leaves the zero out
			out = protowire.AppendTag(out, n, protowire.BytesType)
			out = protowire.AppendBytes(out, f[n])
		}
	}
	return out
}

func decode(data []byte) (fields, error) {
	f := fields{}
	for len(data) > 0 {
		number, kind, n := protowire.ConsumeTag(data)
		if n < 0 || kind != protowire.BytesType {
			return nil, errors.New("a field that is not bytes")
		}
		value, m := protowire.ConsumeBytes(data[n:])
		if m < 0 {
			return nil, errors.New("a message that ends early")
		}
		f[number] = value
		data = data[n+m:]
	}
	return f, nil
}

// Event is what an attestation agent was asked to measure.
type Event struct {
	Domain    string `json:"domain"`
	Operation string `json:"operation"`
	Content   string `json:"content"`
}

// Fake is a hub and an attestation agent at one socket. Its fields are set before Serve.
type Fake struct {
	// Resources are what GetResource knows, by URI.
	Resources map[string][]byte
	// Measured is told every event; its error refuses it. Nil refuses all.
	Measured func(Event) error
	// Echo is the full name of a service whose method Echo answers what it is sent: for
	// requests that a forwarder cannot know. "" is none.
	Echo string
}

// Serve answers at a Unix socket until ctx ends.
func (f *Fake) Serve(ctx context.Context, l net.Listener) error {
	server, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	server.Register(getResource, map[string]ttrpc.Method{"GetResource": f.method(f.resource)})
	server.Register(attestation, map[string]ttrpc.Method{"ExtendRuntimeMeasurement": f.method(f.measure)})
	if f.Echo != "" {
		server.Register(f.Echo, map[string]ttrpc.Method{"Echo": f.method(func(p []byte) ([]byte, error) { return p, nil })})
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(ctx, l); err != nil && !errors.Is(err, ttrpc.ErrServerClosed) && ctx.Err() == nil {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

func (f *Fake) method(answer func([]byte) ([]byte, error)) ttrpc.Method {
	return func(_ context.Context, unmarshal func(any) error) (any, error) {
		req := newRaw(nil)
		if err := unmarshal(req); err != nil {
			return nil, err
		}
		resp, err := answer(req.bytes())
		if err != nil {
			return nil, err
		}
		return newRaw(resp), nil
	}
}

func (f *Fake) resource(payload []byte) ([]byte, error) {
	req, err := decode(payload)
	if err != nil {
		return nil, err
	}
	data, ok := f.Resources[string(req[1])]
	if !ok {
		return nil, status.Error(codes.Internal, "[CDH] [ERROR]: Get Resource failed")
	}
	return fields{1: data}.encode(), nil
}

func (f *Fake) measure(payload []byte) ([]byte, error) {
	req, err := decode(payload)
	if err != nil {
		return nil, err
	}
	if f.Measured == nil {
		return nil, status.Error(codes.Internal, "no measurement here")
	}
	return nil, f.Measured(Event{string(req[1]), string(req[2]), string(req[3])})
}
