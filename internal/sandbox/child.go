package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/errdefs"
)

const hostResolvConf = "/etc/resolv.conf"

// Work is what a child does. It may report how far it is.
type Work[Request, Answer any] func(ctx context.Context, req Request, report Report) (Answer, error)

// Serve is the body of a child: it reads a request, isolates the process, does the
// work, and writes the answer or the error. It returns an error only where it could
// not answer. The caller is a process that [Runner] started, in a mount namespace
// of its own.
func Serve[Request, Answer any](ctx context.Context, in io.Reader, out io.Writer, work Work[Request, Answer]) error {
	result, err := serve(ctx, in, work)
	var a answer
	if err == nil {
		a.Result, err = json.Marshal(result)
	}
	if err != nil {
		a = answer{Kind: errdefs.KindOf(err).String(), Message: cut(errdefs.Redact(err.Error()))}
	}
	if err := json.NewEncoder(out).Encode(a); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	return nil
}

func serve[Request, Answer any](ctx context.Context, in io.Reader, work Work[Request, Answer]) (result Answer, err error) {
	const op = "read the request of a sandbox child"
	// Private keys, credentials, and the content of encrypted layers: from before the
	// first of them is read.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return result, errdefs.Newf(errdefs.Internal, op, "forbid core dumps: %w", err)
	}
	data, err := io.ReadAll(io.LimitReader(in, maxRequest+1))
	if err != nil {
		return result, errdefs.New(errdefs.Internal, op, err)
	}
	if len(data) > maxRequest {
		return result, errdefs.Newf(errdefs.TooLarge, op, "more than %d bytes", maxRequest)
	}
	var req request[Request]
	if err := json.Unmarshal(data, &req); err != nil {
		// Not the error itself, which may quote a credential.
		return result, errdefs.Newf(errdefs.InvalidArgument, op, "it is not valid JSON (%T)", err)
	}
	report := reporter(req.Reports)
	// Before anything looks: net/http reads the proxies once.
	if err := errors.Join(isolate(req.ResolvConf), setAll(req.Variables)); err != nil {
		return result, errdefs.New(errdefs.Internal, "isolate a sandbox child", err)
	}
	return work(ctx, req.Work, report)
}

// cut shortens an error's text to what the parent takes. JSON would make what is not UTF-8
// longer.
func cut(message string) string {
	message = strings.ToValidUTF8(message, "?")
	if len(message) <= maxMessage {
		return message
	}
	return strings.ToValidUTF8(message[:maxMessage-len(ellipsis)], "") + ellipsis
}

// isolate keeps what the process mounts out of the mount namespace that its own was
// copied from. It puts resolvConf in the place of the host's file, which Go's resolver
// reads.
func isolate(resolvConf string) error {
	// A slave and not private: what the host unmounts must not stay busy here for as
	// long as a pull takes.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make the mount namespace a slave: %w", err)
	}
	if resolvConf == "" {
		return nil
	}
	if _, err := os.Stat(hostResolvConf); err != nil {
		// A file cannot be bound over nothing, and must not be made on the host.
		return fmt.Errorf("the pod's resolv.conf needs one on the host to take the place of: %w", err)
	}
	if err := bindFile(resolvConf, hostResolvConf); err != nil {
		return fmt.Errorf("bind %s over %s: %w", resolvConf, hostResolvConf, err)
	}
	return nil
}

// bindFile mounts a regular file over another. A pod's owner may have put something
// else in its place, and root who reads a device sets it going.
func bindFile(path, over string) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0) // which sets nothing going
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }() // nothing was written
	var info unix.Stat_t
	if err := unix.Fstat(fd, &info); err != nil {
		return err
	}
	if info.Mode&unix.S_IFMT != unix.S_IFREG {
		return errors.New("it is no regular file")
	}
	return unix.Mount(fmt.Sprintf("/proc/self/fd/%d", fd), over, "", unix.MS_BIND, "")
}
