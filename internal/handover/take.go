package handover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// offerMode keeps everybody but root from asking: who has the socket answers kubelet.
	offerMode fs.FileMode = 0o600
	// askTimeout bounds one hand-over, against a husk that hangs. The one that asks
	// starts to count first, so it never sends a receipt that is not waited for.
	askTimeout = 5 * time.Second
	// maxMessage bounds a message of the hand-over. It holds a path and a sentence.
	maxMessage = 4 << 10
	// maxSockets is how many descriptors a husk gives: the CRI socket and the offer's.
	maxSockets = 2
	// protocol is the version of the messages. A husk hands over to any husk that
	// speaks its own.
	protocol = 1
)

// The hand-over is three messages on a unixpacket socket: the new husk sends a
// request; the old one sends a reply with the two listening sockets; the new one,
// when it has them and would accept on them, sends a receipt, and only then does the
// old one end. Whoever is gone before its turn has changed nothing.
type (
	request struct {
		Version int    `json:"version"`
		Listen  string `json:"listen"` // the socket that is wanted
	}
	reply struct {
		Version int    `json:"version"`
		Error   string `json:"error,omitempty"` // why there is no socket
		// Own says that the socket's file is a husk's to remove, and not systemd's.
		Own bool `json:"own,omitempty"`
	}
	receipt struct {
		Taken bool `json:"taken"`
	}
)

// take asks the husk that serves for its sockets.
func take(ctx context.Context, o Options) (l *Listener, err error) {
	if o.HandoverPath == "" {
		return nil, errors.New("no hand-over socket is configured")
	}
	dialed, err := (&net.Dialer{Timeout: askTimeout}).DialContext(ctx, "unixpacket", o.HandoverPath)
	if err != nil {
		return nil, err
	}
	defer func() {
		if closeErr := dialed.Close(); l == nil {
			err = errors.Join(err, closeErr)
		}
	}()
	conn, ok := dialed.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("ask %s: unexpected connection %T", o.HandoverPath, dialed)
	}
	if err := conn.SetDeadline(time.Now().Add(askTimeout)); err != nil {
		return nil, err
	}
	// Whoever served there could have any socket answer kubelet.
	if err := fromRoot(conn); err != nil {
		return nil, err
	}
	if err := send(conn, request{Version: protocol, Listen: o.Path}, nil); err != nil {
		return nil, err
	}
	var got reply
	files, err := receive(conn, &got)
	defer func() {
		for _, f := range files {
			_ = f.Close() // listeners have their own descriptors
		}
	}()
	if err != nil {
		return nil, err
	}
	if got.Error != "" {
		return nil, fmt.Errorf("husk at %s: %s", o.HandoverPath, got.Error)
	}
	if l, err = adopt(files, o, got.Own); err != nil {
		return nil, err
	}
	if err := send(conn, receipt{Taken: true}, nil); err != nil {
		// It has ended by itself, or will when it notices: a receipt it did not read
		// leaves it serving, and this one must not.
		return nil, errors.Join(err, l.bound.Close(), l.offer.Close())
	}
	return l, nil
}

// adopt makes listeners of what a husk has sent.
func adopt(files []*os.File, o Options, own bool) (*Listener, error) {
	if len(files) != maxSockets {
		return nil, fmt.Errorf("got %d sockets instead of %d", len(files), maxSockets)
	}
	main, err := listening(files[0], unix.SOCK_STREAM, o.Path)
	if err != nil {
		return nil, err
	}
	offer, err := listening(files[1], unix.SOCK_SEQPACKET, o.HandoverPath)
	if err != nil {
		return nil, errors.Join(err, main.Close())
	}
	l := &Listener{Origin: FromHusk, bound: bind(main, o.Path), offer: bind(offer, o.HandoverPath)}
	if !own {
		l.bound.file = nil
	}
	return l, nil
}

// listening checks that f is a socket that listens at path.
func listening(f *os.File, kind int, path string) (*net.UnixListener, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var accepts, got int
	var acceptsErr, kindErr error
	err = raw.Control(func(fd uintptr) {
		accepts, acceptsErr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		got, kindErr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TYPE)
	})
	if err := errors.Join(err, acceptsErr, kindErr); err != nil {
		return nil, err
	}
	if accepts != 1 || got != kind {
		return nil, fmt.Errorf("got a socket of type %d that does not listen, or not of type %d", got, kind)
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	listener, ok := l.(*net.UnixListener)
	if !ok || !samePath(listener.Addr().String(), path) {
		return nil, errors.Join(fmt.Errorf("got a socket at %s instead of %s", l.Addr(), path), l.Close())
	}
	return listener, nil
}

// fromRoot refuses a peer that is not root.
func fromRoot(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	var peerErr error
	err = raw.Control(func(fd uintptr) { peer, peerErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, peerErr); err != nil {
		return fmt.Errorf("ask who is there: %w", err)
	}
	if peer.Uid != 0 {
		return fmt.Errorf("process %d of user %d is not root", peer.Pid, peer.Uid)
	}
	return nil
}

// send sends a message, with descriptors.
func send(conn *net.UnixConn, message any, rights []byte) error {
	data, err := json.Marshal(message)
	if err != nil {
		return err
	}
	_, _, err = conn.WriteMsgUnix(data, rights, nil)
	return err
}

// receive reads a message and what descriptors came with it, which the caller
// closes, whatever the error.
func receive(conn *net.UnixConn, message any) ([]*os.File, error) {
	data, rights := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(maxSockets*4))
	n, used, flags, _, err := conn.ReadMsgUnix(data, rights)
	if errors.Is(err, io.EOF) {
		return nil, errors.New("the other side has hung up")
	}
	if err != nil {
		return nil, err
	}
	files, err := parseRights(rights[:used])
	if err != nil {
		return files, err
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		return files, errors.New("the message is too long")
	}
	return files, json.Unmarshal(data[:n], message)
}

func parseRights(rights []byte) ([]*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return files, err
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "handed over"))
		}
	}
	return files, nil
}
