package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
)

// line is a span as it is written down: all that it holds, so that what is not in the
// file was not sent.
type line struct {
	Service    string            `json:"service"`
	Name       string            `json:"name"`
	Trace      string            `json:"trace"`
	Span       string            `json:"span"`
	Parent     string            `json:"parent"`
	Kind       string            `json:"kind"`
	Status     string            `json:"status"`
	Attributes map[string]string `json:"attributes"`
	// Raw is the span as protobuf prints it, with its events, links and messages.
	Raw string `json:"raw"`
}

// collector is an OTLP collector that writes each span to out.
type collector struct {
	collectorpb.UnimplementedTraceServiceServer
	mu  sync.Mutex
	out io.Writer
}

// Export implements the OTLP service.
func (c *collector) Export(_ context.Context, r *collectorpb.ExportTraceServiceRequest) (*collectorpb.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	to := json.NewEncoder(c.out)
	for _, rs := range r.GetResourceSpans() {
		service := attributes(rs.GetResource().GetAttributes())["service.name"]
		for _, ss := range rs.GetScopeSpans() {
			for _, s := range ss.GetSpans() {
				if err := to.Encode(newLine(service, s)); err != nil {
					return nil, fmt.Errorf("write span: %w", err)
				}
			}
		}
	}
	return &collectorpb.ExportTraceServiceResponse{}, nil
}

func newLine(service string, s *tracepb.Span) line {
	return line{
		Service: service, Name: s.GetName(), Trace: hex.EncodeToString(s.GetTraceId()), Span: hex.EncodeToString(s.GetSpanId()),
		Parent: hex.EncodeToString(s.GetParentSpanId()), Kind: s.GetKind().String(), Status: s.GetStatus().GetCode().String(),
		Attributes: attributes(s.GetAttributes()), Raw: s.String(),
	}
}

func attributes(list []*commonpb.KeyValue) map[string]string {
	all := make(map[string]string, len(list))
	for _, a := range list {
		switch v := a.GetValue().GetValue().(type) {
		case *commonpb.AnyValue_StringValue:
			all[a.GetKey()] = v.StringValue
		case *commonpb.AnyValue_IntValue:
			all[a.GetKey()] = fmt.Sprint(v.IntValue)
		default:
			all[a.GetKey()] = a.GetValue().String()
		}
	}
	return all
}

// collect takes spans until ctx is done. It prints its address when it listens.
func collect(ctx context.Context, address, spans string, out io.Writer) (err error) {
	file, err := os.OpenFile(spans, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	collectorpb.RegisterTraceServiceServer(server, &collector{out: file})
	defer context.AfterFunc(ctx, server.Stop)()
	if _, err := fmt.Fprintln(out, listener.Addr()); err != nil {
		return errors.Join(err, listener.Close())
	}
	return server.Serve(listener)
}
