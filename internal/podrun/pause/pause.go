// Package pause is the process of a pod's own container. It is the first process of the
// pod's namespaces, holds them, and does nothing else.
package pause

import (
	"errors"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// Path is where the husk binary is mounted in a pod's own container, and by which it knows
// that it is to be the pause process: nobody calls it so by accident.
const Path = "/husk-pause"

// Run reaps the children of others, which a first process inherits, until it is told to
// end by SIGTERM or SIGINT. It reads no file and looks at no argument.
func Run() {
	// Two channels: of a full one, what comes next is dropped, and that may be the end.
	end, child := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(end, unix.SIGTERM, unix.SIGINT)
	signal.Notify(child, unix.SIGCHLD)
	for {
		reap() // also those that ended before anybody listened
		select {
		case <-end:
			return
		case <-child:
		}
	}
}

// reap waits for every child that has ended.
func reap() {
	for {
		pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
	}
}
