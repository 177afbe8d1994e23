package forward

import "time"

// PingSooner returns o with shorter times: a test does not wait six minutes.
func PingSooner(o Options, after, timeout time.Duration) Options {
	o.pingAfter, o.pingTimeout = after, timeout
	return o
}
