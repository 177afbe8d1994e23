package sandboxes

import "time"

// Impatient is a client that waits as long as a test does.
func Impatient(stateDir string, answer, silence, glance time.Duration) Client {
	return Client{StateDir: stateDir, timeouts: timeouts{answer, silence, glance}}
}

// MaxAnswer, MaxImages and MaxText are the bounds that tests go over.
const (
	MaxAnswer = maxAnswer
	MaxImages = maxImages
	MaxText   = maxText
	AtOnce    = atOnce
)
