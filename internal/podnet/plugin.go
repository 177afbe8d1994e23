package podnet

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/cri-o/ocicni/pkg/ocicni"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/pkg/errdefs"
)

const (
	// reapTime is for what is left of plugins to be found and killed, and no longer: one
	// that sleeps in the kernel does not die.
	reapTime  = 2 * time.Second
	reapEvery = 20 * time.Millisecond
	// maxRounds bounds the search for what stopped processes have started, against one that
	// starts others faster than they are found.
	maxRounds = 16
	// maxEnviron is what is read of another process's environment; the variables that are
	// looked for stand at its end or its start, by chance.
	maxEnviron = 1 << 20
)

// plugin loads the network configurations, once and without watching them. ocicni asks
// each plugin for its version, and has no bound for that.
func (c Config) plugin(ctx context.Context) (ocicni.CNIPlugin, error) {
	plugin, err := bounded(ctx, ofVersion, func() (ocicni.CNIPlugin, error) {
		return ocicni.InitCNINoInotify(c.DefaultNetwork, c.ConfDir, c.CacheDir, c.PluginDirs...)
	})
	if err != nil {
		return nil, errdefs.New(kindOf(err), "read the CNI configuration in "+c.ConfDir, err)
	}
	return plugin, nil
}

// outlive returns a context that ends so long after ctx.
func outlive(ctx context.Context, after time.Duration) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		late := time.NewTimer(after)
		defer late.Stop()
		select {
		case <-late.C:
			cancel()
		case <-longer.Done():
		}
	})
	return longer, func() { stop(); cancel() }
}

// bounded is call, but not longer than ctx. libcni waits for whoever holds the plugin's
// output: for children of a killed plugin too, and some calls are given no context. So
// when ctx ends the processes that left finds are killed until call returns.
func bounded[T any](ctx context.Context, left match, call func() (T, error)) (T, error) {
	var none T
	if ctx.Err() != nil { // nothing is started, so nothing is to be killed
		return none, ctx.Err()
	}
	type outcome struct {
		value T
		err   error
	}
	done := make(chan outcome, 1)
	go func() {
		value, err := call()
		done <- outcome{value, err}
	}()
	select {
	case got := <-done:
		return got.value, got.err
	case <-ctx.Done():
	}
	again, late := time.NewTicker(reapEvery), time.NewTimer(reapTime)
	defer again.Stop()
	defer late.Stop()
	for {
		kill(left)
		select {
		case <-done: // after its end nothing it says counts
			return none, ctx.Err()
		case <-again.C:
		case <-late.C:
			return none, ctx.Err()
		}
	}
}

// match reports whether a process is what a call has started, by its environment and
// whether it descends from this process.
type match func(environ []byte, descends bool) bool

// ofPod finds the plugins of one pod, and what they have started: the ID is the pod's
// alone. A killed plugin's children are nobody's.
func ofPod(id string) match {
	return func(environ []byte, _ bool) bool { return has(environ, "CNI_CONTAINERID="+id) }
}

// ofVersion finds plugins that were asked for their version, by this process: by another
// call of it too, which then finds the network missing.
func ofVersion(environ []byte, descends bool) bool {
	return descends && has(environ, "CNI_COMMAND=VERSION")
}

func has(environ []byte, variable string) bool {
	for one := range bytes.SplitSeq(environ, []byte{0}) {
		if string(one) == variable {
			return true
		}
	}
	return false
}

// kill ends the processes that left matches. They are stopped before any is killed: the
// child that one starts meanwhile would be nobody's, and not be found.
func kill(left match) {
	stopped := map[int]int{} // to descriptors, so that no other process that gets the number is killed
	for range maxRounds {
		if !stop(left, stopped) {
			break
		}
	}
	for _, fd := range stopped {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		_ = unix.Close(fd)
	}
}

// stop stops what left matches and is not in stopped, and reports whether it found any.
func stop(left match, stopped map[int]int) (found bool) {
	parents := parents()
	for pid := range parents {
		if _, known := stopped[pid]; known || pid == os.Getpid() {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		environ, err := readAtMost(procFile(pid, "environ"), maxEnviron)
		if err != nil || !left(environ, descends(parents, pid)) {
			_ = unix.Close(fd)
			continue
		}
		_ = unix.PidfdSendSignal(fd, unix.SIGSTOP, nil, 0)
		stopped[pid], found = fd, true
	}
	return found
}

// descends reports whether pid has this process among its parents.
func descends(parents map[int]int, pid int) bool {
	for range len(parents) { // a number may be used again while they are read: no loop
		pid = parents[pid]
		if pid == os.Getpid() {
			return true
		}
	}
	return false
}

// parents maps each process to its parent.
func parents() map[int]int {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	parents := make(map[int]int, len(dirs))
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(procFile(pid, "stat"))
		if err != nil {
			continue
		}
		// "PID (NAME) STATE PPID ...", and the name may have anything in it.
		fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		if len(fields) > 1 {
			parents[pid], _ = strconv.Atoi(string(fields[1]))
		}
	}
	return parents
}

func procFile(pid int, name string) string { return "/proc/" + strconv.Itoa(pid) + "/" + name }
