package handover

import (
	"errors"
	"net"
	"strings"

	"github.com/coreos/go-systemd/v22/activation"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// activated returns the listening socket at path that systemd passed to this
// process; nil when it passed none at all. The others are closed.
func activated(path string) (*Listener, error) {
	var found *Listener
	var others []string
	var errs []error
	for _, f := range activation.Files(true) {
		l, err := net.FileListener(f)
		errs = append(errs, f.Close())
		if err != nil { // a pipe, a datagram socket
			others = append(others, f.Name())
			continue
		}
		unix, ok := l.(*net.UnixListener)
		if !ok || found != nil || !samePath(unix.Addr().String(), path) {
			others = append(others, l.Addr().String())
			errs = append(errs, l.Close())
			continue
		}
		unix.SetUnlinkOnClose(false)
		found = &Listener{Origin: FromSystemd, bound: &bound{UnixListener: unix, path: path}}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, errdefs.New(errdefs.Internal, "take systemd's sockets", err)
	}
	if found == nil && len(others) > 0 {
		return nil, errdefs.Newf(errdefs.InvalidArgument, "listen on "+path,
			"systemd passed %s instead: ListenStream of the socket unit and listen of husk.toml must be one path", strings.Join(others, ", "))
	}
	return found, nil
}
