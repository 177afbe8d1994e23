package handover

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// serveOffer answers husks that ask, one after the other, until one has taken the
// sockets, which it reports, or ctx is done.
func (l *Listener) serveOffer(ctx context.Context, log *slog.Logger) (taken bool) {
	stop := context.AfterFunc(ctx, func() {
		_ = l.offer.SetDeadline(time.Unix(1, 0)) // Accept ends; the socket is closed below
	})
	defer stop()
	for ctx.Err() == nil && !taken {
		conn, err := l.offer.AcceptUnix()
		if err != nil {
			if ctx.Err() == nil {
				log.Warn("a husk that starts later cannot take the socket over from this one", "error", err)
			}
			break
		}
		taken, err = l.give(conn, log)
		if err = errors.Join(err, conn.Close()); err != nil {
			log.Warn("the socket was not handed over, or not in order", "taken", taken, "error", err)
		}
	}
	var err error
	if taken {
		err = l.offer.Close()
	} else {
		err = l.offer.closeAndRemove()
	}
	if err != nil {
		log.Warn("close the hand-over socket", "error", err)
	}
	return taken
}

// give hands the sockets to the husk at the other end; true once it has them.
func (l *Listener) give(conn *net.UnixConn, log *slog.Logger) (taken bool, err error) {
	if err := conn.SetDeadline(time.Now().Add(askTimeout)); err != nil {
		return false, err
	}
	if err := fromRoot(conn); err != nil {
		return false, err
	}
	var asked request
	files, err := receive(conn, &asked)
	for _, f := range files {
		_ = f.Close() // a request has none
	}
	if err != nil {
		return false, fmt.Errorf("read the request: %w", err)
	}
	if refusal := l.refusal(asked); refusal != nil {
		return false, errors.Join(refusal, send(conn, reply{Version: protocol, Error: refusal.Error()}, nil))
	}
	l.mu.Lock()
	defer l.mu.Unlock() // Close waits: either the file is removed or it is handed over
	if l.closed {
		refusal := errors.New("this husk is ending")
		return false, errors.Join(refusal, send(conn, reply{Version: protocol, Error: refusal.Error()}, nil))
	}
	if err := l.sendSockets(conn); err != nil {
		return false, fmt.Errorf("send the sockets: %w", err)
	}
	var got receipt
	if _, err := receive(conn, &got); err != nil {
		return false, fmt.Errorf("read the receipt: %w", err)
	}
	if !got.Taken {
		return false, errors.New("the new husk did not take the sockets")
	}
	l.given = true
	log.Info("another husk has taken the socket over", "socket", l.bound.path)
	return true, nil
}

// refusal says why this husk does not have what was asked for.
func (l *Listener) refusal(asked request) error {
	switch {
	case asked.Version != protocol:
		return fmt.Errorf("speaks version %d of the hand-over, not %d", protocol, asked.Version)
	case !samePath(asked.Listen, l.bound.path):
		return fmt.Errorf("serves %s, not %s", l.bound.path, asked.Listen)
	}
	return nil
}

// sendSockets sends both sockets. Their descriptors are not taken out of Go's
// hands, which would make them blocking for both processes.
func (l *Listener) sendSockets(conn *net.UnixConn) error {
	main, err := l.bound.SyscallConn()
	if err != nil {
		return err
	}
	offer, err := l.offer.SyscallConn()
	if err != nil {
		return err
	}
	var offerErr, sendErr error
	err = main.Control(func(first uintptr) {
		offerErr = offer.Control(func(second uintptr) {
			message := reply{Version: protocol, Own: l.bound.file != nil}
			sendErr = send(conn, message, unix.UnixRights(int(first), int(second)))
		})
	})
	return errors.Join(err, offerErr, sendErr)
}
