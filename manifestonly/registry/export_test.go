package registry

import "time"

// NewImpatient is New with short pauses between attempts.
func NewImpatient(config Config, pause time.Duration) *Source {
	s := New(config)
	s.steps.pause = pause
	return s
}

// What tests compare with.
const (
	MaxAttempts   = maxAttempts
	MaxStepBytes  = maxStepBytes
	MaxHeapGrowth = maxHeapGrowth
)
