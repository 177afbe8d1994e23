package handover

import (
	"fmt"
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"
)

// State is what a service tells systemd about itself.
type State string

// The states systemd knows.
const (
	// Ready is a husk that serves, or that has read its configuration again.
	Ready State = daemon.SdNotifyReady
	// Reloading is a husk that reads its configuration again; Ready follows.
	Reloading State = daemon.SdNotifyReloading
	// Stopping is a husk that accepts no more and lets its calls end.
	Stopping State = daemon.SdNotifyStopping
)

// Notify tells systemd the state and a line for systemctl status, if it wants to
// know (NOTIFY_SOCKET).
func Notify(state State, line string) error {
	text := string(state)
	if state == Reloading {
		text += "\n" + strings.TrimSpace(daemon.SdNotifyMonotonicUsec())
	}
	if line != "" {
		text += "\nSTATUS=" + line
	}
	if _, err := daemon.SdNotify(false, text); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	return nil
}
