package forward

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"google.golang.org/grpc"
)

// Serve accepts connections until ctx is done: HTTP/2 ones are gRPC and every
// call on them goes to handler; HTTP/1 ones (cAdvisor, crio status) are proxied to
// the backend. It closes the listener first, and returns when the calls under way
// have ended, within [Options].Stop or, if the cause of ctx's end is
// [handover.ErrTaken], within [Options].Handover. A backend serves once.
//
// As CRI-O's own server it has gRPC's defaults for keepalive, no limit of
// concurrent streams, and no deadlines: those are the client's.
func (b *Backend) Serve(ctx context.Context, listener net.Listener, handler grpc.StreamHandler, log *slog.Logger) error {
	calls := b.grpcServer(handler)
	web := b.webServer(ctx, log)
	split := newSplitter(listener.Addr(), log)

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var accepting, serving sync.WaitGroup
	results := make(chan error, 3)
	run := func(wait *sync.WaitGroup, serve func() error) {
		wait.Go(func() {
			results <- serve()
			cancel() // one part cannot serve alone
		})
	}
	run(&accepting, func() error { return split.serve(ctx, listener) })
	run(&serving, func() error { return calls.Serve(split.grpc) })
	run(&serving, func() error { return web.Serve(split.http) })
	<-ctx.Done()
	errs := []error{ignoreClosed(listener.Close())}
	accepting.Wait()
	split.settle()
	b.end(ctx, calls, web)
	serving.Wait()
	close(results)
	for err := range results {
		errs = append(errs, ignoreClosed(err))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("serve %s: %w", listener.Addr(), err)
	}
	return nil
}

func (b *Backend) grpcServer(handler grpc.StreamHandler) *grpc.Server {
	return grpc.NewServer(
		grpc.ForceServerCodecV2(codec{}),
		grpc.UnknownServiceHandler(handler),
		grpc.MaxRecvMsgSize(b.options.MaxRecvBytes),
		grpc.MaxSendMsgSize(b.options.MaxSendBytes),
		grpc.InitialWindowSize(receiveWindow),
		grpc.InitialConnWindowSize(receiveWindow),
		grpc.ReadBufferSize(bufferBytes),
		grpc.WriteBufferSize(bufferBytes),
	)
}

// end waits for the calls under way, each kind for its grace. Clients are told at
// once to make their next call on a new connection.
func (b *Backend) end(ctx context.Context, calls *grpc.Server, web *http.Server) {
	drain := b.options.drain(ctx)
	cut := time.AfterFunc(drain.Streams, b.live.cut)
	defer cut.Stop()
	stop := time.AfterFunc(drain.Calls, calls.Stop)
	defer stop.Stop()
	var ending sync.WaitGroup
	ending.Go(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain.Calls)
		defer cancel()
		if err := web.Shutdown(ctx); err != nil {
			_ = web.Close() // what is left is out of time
		}
		b.live.cut() // upgraded connections are nobody's else
	})
	calls.GracefulStop()
	ending.Wait()
}

// ignoreClosed drops the errors that mean that serving was ended on purpose.
func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, http.ErrServerClosed) || errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return err
}
