package shim

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"
)

// What a container has made bounds neither the time nor the memory of a count.
func TestDiskUsageIsBounded(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := t.TempDir()
	const size = 64 << 10
	for i := range 10 {
		g.Expect(os.WriteFile(filepath.Join(dir, strconv.Itoa(i)), make([]byte, size), 0o600)).To(Succeed())
	}
	all := diskUsage(dir, 100)
	g.Expect(all).To(BeNumerically(">=", 10*size))
	g.Expect(diskUsage(dir, 6)).To(And(BeNumerically(">=", 5*size), BeNumerically("<", 6*size)))
	g.Expect(diskUsage(filepath.Join(dir, "missing"), 100)).To(BeZero())

	deep := filepath.Join(dir, strings.Repeat("d/", maxUsageDepth))
	g.Expect(os.MkdirAll(deep, 0o700)).To(Succeed())
	withDirs := diskUsage(dir, 1000)
	g.Expect(os.WriteFile(filepath.Join(deep, "f"), make([]byte, size), 0o600)).To(Succeed())
	g.Expect(diskUsage(dir, 1000)).To(Equal(withDirs))
}

// A container may exchange a directory for a FIFO or a link while it is being counted.
func TestDiskUsageWaitsForNothing(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir, outside := t.TempDir(), t.TempDir()
	g.Expect(os.WriteFile(filepath.Join(outside, "f"), make([]byte, 1<<20), 0o600)).To(Succeed())
	at := func(name string) string { return filepath.Join(dir, name) }
	g.Expect(unix.Mkfifo(at("fifo"), 0o600)).To(Succeed())
	g.Expect(os.Symlink(outside, at("link"))).To(Succeed())
	g.Expect(os.Mkdir(at("swapped"), 0o700)).To(Succeed())
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for other := 0; ; other++ {
			select {
			case <-stop:
				return
			default:
				name := []string{"fifo", "link"}[other%2]
				_ = unix.Renameat2(unix.AT_FDCWD, at("swapped"), unix.AT_FDCWD, at(name), unix.RENAME_EXCHANGE)
				_ = unix.Renameat2(unix.AT_FDCWD, at("swapped"), unix.AT_FDCWD, at(name), unix.RENAME_EXCHANGE)
			}
		}
	}()
	for range 2000 {
		g.Expect(diskUsage(dir, 100)).To(BeNumerically("<", 1<<20))
	}
	close(stop)
	<-stopped
}
