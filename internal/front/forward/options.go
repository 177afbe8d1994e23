package forward

import (
	"context"
	"errors"
	"time"

	"github.com/husk-cri/husk/internal/handover"
)

const (
	// DefaultMaxMessageBytes is CRI-O's own default (grpc_max_send_msg_size and
	// grpc_max_recv_msg_size). It stops one message, broken or hostile, from filling
	// the front's memory.
	DefaultMaxMessageBytes = 80 << 20
	// stopStreams and stopCalls are the graces of a plain stop, such as SIGTERM:
	// systemd and whoever updates the node wait for it.
	stopStreams = 500 * time.Millisecond
	stopCalls   = 5 * time.Second
	// handoverStreams and handoverCalls are the graces when another husk serves
	// already. Nobody waits, so a pull or a slow CreateContainer may end in peace;
	// a process that never went away would pile up with every upgrade.
	handoverStreams = 2 * time.Second
	handoverCalls   = time.Minute
)

// Options tune a [Backend]. The zero value is right for a default CRI-O.
type Options struct {
	// MaxSendBytes bounds each message that CRI-O sends, an answer: crio.conf's
	// grpc_max_send_msg_size. Zero: [DefaultMaxMessageBytes].
	MaxSendBytes int
	// MaxRecvBytes bounds each message that CRI-O is sent, a request: crio.conf's
	// grpc_max_recv_msg_size. Zero: [DefaultMaxMessageBytes].
	MaxRecvBytes int
	// EditHTTP makes an HTTP answer of CRI-O true. Zero: answers pass as they are.
	EditHTTP EditHTTP
	// Stop is how calls under way end when serving ends. Zero: half a second for
	// streams, 5 seconds for calls.
	Stop Drain
	// Handover is the same when another husk has taken the listening socket over
	// (the context's cause is [handover.ErrTaken]). Zero: 2 seconds, one minute.
	Handover Drain

	pingAfter, pingTimeout time.Duration // shorter in tests
}

// Drain is how long calls under way may take once serving ends.
type Drain struct {
	// Streams that may never end, such as container events, are cut after this time
	// with code Unavailable.
	Streams time.Duration
	// Calls of all other kinds, HTTP requests among them, are given up after this time.
	Calls time.Duration
}

func (d Drain) withDefaults(streams, calls time.Duration) Drain {
	return Drain{Streams: positive(d.Streams, streams), Calls: positive(d.Calls, calls)}
}

func (o Options) withDefaults() Options {
	o.MaxSendBytes = positive(o.MaxSendBytes, DefaultMaxMessageBytes)
	o.MaxRecvBytes = positive(o.MaxRecvBytes, DefaultMaxMessageBytes)
	o.Stop = o.Stop.withDefaults(stopStreams, stopCalls)
	o.Handover = o.Handover.withDefaults(handoverStreams, handoverCalls)
	o.pingAfter = positive(o.pingAfter, pingAfter)
	o.pingTimeout = positive(o.pingTimeout, pingTimeout)
	return o
}

// positive returns value, or the default when it says nothing.
func positive[T int | time.Duration](value, otherwise T) T {
	if value <= 0 {
		return otherwise
	}
	return value
}

// drain returns the graces for the end of ctx.
func (o Options) drain(ctx context.Context) Drain {
	if errors.Is(context.Cause(ctx), handover.ErrTaken) {
		return o.Handover
	}
	return o.Stop
}
