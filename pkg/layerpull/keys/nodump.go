package keys

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// NoCoreDump makes the kernel write no core file of this process and of those that
// it starts, and lets no other process without CAP_SYS_PTRACE read its memory. It is
// for the process that pulls, before it opens a [Ring]. Processes that it starts
// inherit the limit; what pipes core files to a program ignores that limit, but not
// what holds for this process itself.
func NoCoreDump() error {
	// A limit alone does not stop a core_pattern that pipes; this does.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("make the process not dumpable: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbid core files: %w", err)
	}
	return nil
}
