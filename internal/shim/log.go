package shim

import (
	"context"
	"errors"
	"time"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// logOpenWait is how long a shim waits for CRI-O to read its log before it goes
// without one. CRI-O opens the log before it starts a shim.
const logOpenWait = time.Second

// openLog sends the log and what the Go runtime has to say to CRI-O's fifo. Unlike
// the framework's, it goes on without a reader: CRI-O may be gone by now.
func openLog(ctx context.Context) {
	logrus.SetFormatter(&logrus.TextFormatter{TimestampFormat: log.RFC3339NanoFixed, FullTimestamp: true})
	deadline := time.Now().Add(logOpenWait)
	for {
		fd, err := unix.Open("log", unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err == nil {
			if err := unix.Dup3(fd, unix.Stderr, 0); err != nil {
				log.G(ctx).WithError(err).Warn("no log for the Go runtime")
			}
			logrus.SetOutput(fdLog(fd))
			return
		}
		if !errors.Is(err, unix.ENXIO) || time.Now().After(deadline) {
			logrus.SetOutput(fdLog(-1))
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// fdLog writes to a fifo and drops what does not fit or nobody reads: a shim must
// neither wait for CRI-O's log nor die with it.
type fdLog int

func (l fdLog) Write(p []byte) (int, error) {
	_, _ = unix.Write(int(l), p)
	return len(p), nil
}
