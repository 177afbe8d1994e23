package forward

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/soheilhy/cmux"
	"google.golang.org/grpc"
)

const (
	// http2Preface starts every HTTP/2 connection (RFC 9113, section 3.4).
	http2Preface = "PRI * HTTP/2.0"
	// sniffTimeout bounds the wait for a new connection's first bytes, against
	// clients that connect and say nothing.
	sniffTimeout = 5 * time.Second
	// acceptPause is how long accepting rests after an error such as too many
	// open files, which would otherwise become a busy loop.
	acceptPause = 50 * time.Millisecond
	// stopGrace is how long calls under way may take once serving ends. Event
	// streams never end by themselves.
	stopGrace = 2 * time.Second
)

// Serve accepts connections until ctx is done: HTTP/2 ones are gRPC and every
// call on them goes to handler; HTTP/1 ones (cAdvisor, crio status) are passed
// to the backend byte for byte. It closes the listener.
func (b *Backend) Serve(ctx context.Context, listener net.Listener, handler grpc.StreamHandler, log *slog.Logger) error {
	limit := b.options.maxMessageBytes()
	server := grpc.NewServer(
		grpc.ForceServerCodecV2(codec{}),
		grpc.UnknownServiceHandler(handler),
		grpc.MaxRecvMsgSize(limit),
		grpc.MaxSendMsgSize(limit),
		grpc.InitialWindowSize(receiveWindow),
		grpc.InitialConnWindowSize(receiveWindow),
		grpc.ReadBufferSize(bufferBytes),
		grpc.WriteBufferSize(bufferBytes),
	)
	mux := cmux.New(listener)
	mux.SetReadTimeout(sniffTimeout)
	mux.HandleError(func(err error) bool { return keepAccepting(ctx, err, log) })
	grpcListener := mux.Match(cmux.PrefixMatcher(http2Preface))
	httpListener := mux.Match(cmux.HTTP1Fast())

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var serving sync.WaitGroup
	results := make(chan error, 3)
	for _, serve := range []func() error{
		mux.Serve,
		func() error { return server.Serve(grpcListener) },
		func() error { return b.serveHTTP(ctx, httpListener, log) },
	} {
		serving.Go(func() {
			results <- serve()
			cancel() // one part cannot serve alone
		})
	}
	<-ctx.Done()
	stopping := time.AfterFunc(stopGrace, server.Stop)
	defer stopping.Stop()
	mux.Close()
	server.GracefulStop()
	closeErr := listener.Close()
	serving.Wait()
	close(results)
	errs := []error{ignoreClosed(closeErr)}
	for err := range results {
		errs = append(errs, ignoreClosed(err))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("serve %s: %w", listener.Addr(), err)
	}
	return nil
}

// ignoreClosed drops the errors that mean that serving was ended on purpose.
func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, cmux.ErrServerClosed) ||
		errors.Is(err, cmux.ErrListenerClosed) || errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return err
}

// keepAccepting decides whether an error of the multiplexer ends serving.
func keepAccepting(ctx context.Context, err error, log *slog.Logger) bool {
	if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
		return false
	}
	var unmatched cmux.ErrNotMatched
	if errors.As(err, &unmatched) {
		log.Debug("closed a connection that speaks neither gRPC nor HTTP")
		return true
	}
	log.Warn("accept a connection", "error", err)
	time.Sleep(acceptPause)
	return true
}
