package fakeregistry

import (
	"context"
	"fmt"
	"slices"
)

// TB is what the registry needs of a test. [testing.TB] is one; a command that
// serves registries to a node brings its own.
type TB interface {
	// Helper marks the caller as a helper.
	Helper()
	// Cleanup registers what is to run at the end.
	Cleanup(func())
	// Context ends before what was registered runs.
	Context() context.Context
	// Fatalf ends the test.
	Fatalf(format string, args ...any)
}

// Run calls do with a TB that is no test, for a command that serves registries.
// It returns do's error, or what Fatalf was told in do's own goroutine; before
// that, everything that was registered with Cleanup has run.
func Run(ctx context.Context, do func(TB) error) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	p := &process{ctx: ctx}
	defer func() {
		cancel()
		for _, end := range slices.Backward(p.ends) {
			end()
		}
		if fault := recover(); fault != nil {
			f, ok := fault.(fatal)
			if !ok {
				panic(fault)
			}
			err = f
		}
	}()
	return do(p)
}

// process is a TB outside a test.
type process struct {
	ctx  context.Context //nolint:containedctx // it is what Context returns, as in testing.T
	ends []func()
}

// fatal is what Fatalf was told.
type fatal string

// Error returns the message.
func (f fatal) Error() string { return string(f) }

func (p *process) Helper()                           {}
func (p *process) Cleanup(end func())                { p.ends = append(p.ends, end) }
func (p *process) Context() context.Context          { return p.ctx }
func (p *process) Fatalf(format string, args ...any) { panic(fatal(fmt.Sprintf(format, args...))) }
