package podrun

import (
	"context"
	"time"

	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/bundlegen/bundles"
)

const unixKill = unix.SIGKILL

// killedCode is the exit code of what SIGKILL ended, as a shell has it.
const killedCode = 128 + int(unix.SIGKILL)

// started changes a container into one that runs.
func started(c *bundles.Container) {
	c.State = bundles.State{Status: bundles.StatusRunning, StartedAt: time.Now().UTC()}
}

// starting changes a container into one that is being started, for the first time or again.
func starting(c *bundles.Container) { c.State = bundles.State{Status: bundles.StatusCreated} }

// exited changes a container into one that has ended, unless it had before.
func exited(code int, reason string) func(*bundles.Container) {
	return func(c *bundles.Container) {
		if c.State.Status == bundles.StatusExited {
			return
		}
		c.State.Status, c.State.FinishedAt = bundles.StatusExited, time.Now().UTC()
		c.State.ExitCode, c.State.Reason = code, reason
	}
}

// pauseFor waits, or until ctx ends.
func pauseFor(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
