package taskclient

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/namespaces"
	containerdshim "github.com/containerd/containerd/runtime/v2/shim"
	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// socket is one that somebody listens on.
func socket(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return path
}

func TestStart(t *testing.T) {
	t.Parallel()
	listening := socket(t)
	for name, tc := range map[string]struct {
		text string
		kind errdefs.Kind
		says string // "": it starts
	}{
		"an address":       {"echo unix://" + listening, 0, ""},
		"without a line":   {"printf unix://" + listening, 0, ""},
		"JSON":             {`echo '{"version":2,"address":"unix://` + listening + `","protocol":"ttrpc","more":1}'`, 0, ""},
		"warns":            {"echo careful >&2; echo unix://" + listening, 0, ""},
		"keeps its output": {"sleep 20 & echo unix://" + listening, 0, ""},
		"JSON for gRPC":    {`echo '{"version":2,"address":"unix:///s","protocol":"grpc"}'`, errdefs.Unsupported, `it speaks "grpc", not ttrpc`},
		"JSON of the next": {`echo '{"version":3,"address":"unix:///s","protocol":"ttrpc"}'`, errdefs.Unsupported, "version 3 of the task API, not 2"},
		"JSON of none":     {`echo '{}'`, errdefs.Unsupported, "version 0"},
		"half of JSON":     {`echo '{"version":2'`, errdefs.Internal, "it printed"},
		"JSON with TCP":    {`echo '{"version":2,"address":"tcp://1.2.3.4:5","protocol":"ttrpc"}'`, errdefs.Unsupported, "is not on a unix socket"},
		"nothing":          {"true", errdefs.Internal, "it printed none"},
		"garbage":          {`printf 'a\033[31mb\n\n'`, errdefs.Internal, `"a [31mb" is no address`},
		"two lines":        {"echo hello; echo unix://" + listening, errdefs.Internal, "is no address"},
		"floods":           {"exec yes", errdefs.Internal, "it printed more than 16384 bytes"},
		"complains only":   {"yes >&2 & sleep 0.2; kill $!", errdefs.Internal, "it printed none"},
		"fails":            {"echo unix:///s; echo why not >&2; exit 3", errdefs.Internal, "exit status 3: why not"},
		"dies":             {"kill -9 $$", errdefs.Internal, "signal: killed"},
		"does not listen":  {"echo unix:///nonexistent/husk", errdefs.Unavailable, "the shim does not answer"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			r := Runtime{Path: script(t, tc.text)}
			shim, err := r.Start(t.Context(), "c", t.TempDir(), nil)
			if tc.says == "" {
				g.Expect(err).NotTo(HaveOccurred())
				g.Expect(shim.Address()).To(Equal("unix://" + listening))
				g.Expect(shim.Close()).To(Succeed())
				return
			}
			g.Expect(err).To(MatchError(ContainSubstring(tc.says)))
			g.Expect(errdefs.KindOf(err)).To(Equal(tc.kind), "%v", err)
			g.Expect(len(err.Error())).To(BeNumerically("<", 4*maxText))
		})
	}
}

func TestStartOfNoBinary(t *testing.T) {
	t.Parallel()
	notExecutable := filepath.Join(t.TempDir(), "f")
	NewWithT(t).Expect(os.WriteFile(notExecutable, nil, 0o600)).To(Succeed())
	for path, kind := range map[string]errdefs.Kind{
		"containerd-shim-kata-v2": errdefs.InvalidArgument, "": errdefs.InvalidArgument, "./x": errdefs.InvalidArgument,
		"/nonexistent/shim": errdefs.NotFound, notExecutable: errdefs.InvalidArgument,
	} {
		_, err := Runtime{Path: path}.Start(t.Context(), "c", t.TempDir(), nil)
		g := NewWithT(t)
		g.Expect(err).To(HaveOccurred())
		g.Expect(errdefs.KindOf(err)).To(Equal(kind), "%v", err)
	}
}

// A `start` that hangs is killed, with its children, by its context or its bound.
func TestStartThatHangs(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		start func(ctx context.Context, r Runtime, bundle string) error
		kind  errdefs.Kind
	}{
		"ctx": {func(ctx context.Context, r Runtime, bundle string) error {
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			_, err := r.Start(ctx, "c", bundle, nil)
			return err
		}, errdefs.DeadlineExceeded},
		"bound": {func(ctx context.Context, r Runtime, bundle string) error {
			_, err := r.run(ctx, "start", time.Second, bundle, "start")
			return err
		}, errdefs.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			bundle := t.TempDir()
			err := tc.start(t.Context(), Runtime{Path: script(t, "sleep 1000 & echo $! > pid; wait")}, bundle)
			g.Expect(errdefs.KindOf(err)).To(Equal(tc.kind), "%v", err)
			data, err := os.ReadFile(filepath.Join(bundle, "pid"))
			g.Expect(err).NotTo(HaveOccurred())
			pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
			g.Expect(err).NotTo(HaveOccurred())
			g.Eventually(func() string { return processState(pid) }, 5*time.Second).Should(BeElementOf("", "Z"))
		})
	}
}

// processState is the letter of the kernel's; "" for a process that is gone.
func processState(pid int) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	return rest[:1]
}

// The command lines, the directory and what containerd sets are containerd's.
func TestCommandsAreContainerds(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	listening := socket(t)
	bundle := t.TempDir()
	r := Runtime{Path: script(t, `for a; do echo "$a"; done > args; env > env; pwd > dir; cat > in; echo unix://`+listening)}
	read := func(name string) []string {
		data, err := os.ReadFile(filepath.Join(bundle, name))
		g.Expect(err).NotTo(HaveOccurred())
		return strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
	}
	run := map[string]func() error{
		"start": func() error {
			shim, err := r.Start(t.Context(), "c", bundle, nil)
			if err == nil {
				err = shim.Close()
			}
			return err
		},
		"delete": func() error { return r.Delete(t.Context(), "c", bundle) },
	}
	for verb, args := range map[string][]string{
		"start":  {"-id", "c", "start"},                     // CRI-O's startRuntimeDaemon
		"delete": {"-id", "c", "-bundle", bundle, "delete"}, // containerd's binary.Delete
	} {
		g.Expect(run[verb]()).To(Succeed())
		want, err := containerdshim.Command(namespaces.WithNamespace(t.Context(), namespaces.Default), &containerdshim.CommandConfig{Runtime: r.Path, Path: bundle, Args: args})
		g.Expect(err).NotTo(HaveOccurred())
		got := read("args")
		for i, a := range want.Args[1:] {
			if a == "" {
				g.Expect(got[i]).To(BeEmpty())
			} else {
				g.Expect(got[i]).To(Equal(a))
			}
		}
		g.Expect(got).To(HaveLen(len(want.Args) - 1))
		g.Expect(read("dir")).To(Equal([]string{want.Dir}))
		g.Expect(read("in")).To(Equal([]string{""}), "no options on the input")
		for _, entry := range want.Env[len(os.Environ()):] {
			g.Expect(read("env")).To(ContainElement(entry))
		}
		g.Expect(want.SysProcAttr).To(Equal(&syscall.SysProcAttr{Setpgid: true}))
	}
}

func TestEnviron(t *testing.T) {
	t.Parallel()
	own := []string{"PATH=/bin", "REGISTRY_PASSWORD=s", "AWS_SECRET_ACCESS_KEY=s", "https_proxy=http://p", "MAX_SHIM_VERSION=9", "PATHS=x", "broken", "LD_PRELOAD=x"}
	NewWithT(t).Expect(environ(own)).To(Equal([]string{
		"PATH=/bin", "https_proxy=http://p", "GOMAXPROCS=2", "MAX_SHIM_VERSION=2", "TTRPC_ADDRESS=", "GRPC_ADDRESS=", "NAMESPACE=default",
	}))
}

func TestDelete(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	err := Runtime{Path: script(t, "echo it is busy >&2; exit 1")}.Delete(t.Context(), "c", t.TempDir())
	g.Expect(err).To(MatchError(And(ContainSubstring("clean up after the shim of container c"), ContainSubstring("it is busy"))))
	err = Runtime{Path: script(t, "true")}.Delete(t.Context(), "c", "/nonexistent/bundle")
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.NotFound), "%v", err)
}

func TestAddress(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		make func(path string) error
		kind errdefs.Kind
		want string
	}{
		"plain": {func(p string) error { return os.WriteFile(p, []byte("unix:///s\n"), 0o600) }, 0, "unix:///s"},
		"JSON": {func(p string) error {
			return os.WriteFile(p, []byte(`{"version":2,"address":"unix:///s","protocol":"TTRPC"}`), 0o600)
		}, 0, "unix:///s"},
		"none":    {func(string) error { return nil }, errdefs.NotFound, ""},
		"empty":   {func(p string) error { return os.WriteFile(p, nil, 0o600) }, errdefs.Internal, ""},
		"FIFO":    {func(p string) error { return syscall.Mkfifo(p, 0o600) }, errdefs.Internal, ""},
		"link":    {func(p string) error { return os.Symlink("/etc/hostname", p) }, errdefs.Internal, ""},
		"endless": {func(p string) error { return os.WriteFile(p, make([]byte, 1<<20), 0o600) }, errdefs.TooLarge, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			bundle := t.TempDir()
			g.Expect(tc.make(filepath.Join(bundle, addressFile))).To(Succeed())
			got, err := Address(bundle)
			g.Expect(got).To(Equal(tc.want))
			if tc.want == "" {
				g.Expect(err).To(HaveOccurred())
				g.Expect(errdefs.KindOf(err)).To(Equal(tc.kind), "%v", err)
			}
		})
	}
}

// What a shim logs arrives, also of writers one after the other, in lines that are bounded
// and printable; what is in the FIFO at the end too.
func TestLog(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	text := `echo first > log
{ printf 'esc\033[0m\nlong '; head -c 100000 /dev/zero | tr '\0' x; echo; echo next; } > log
printf 'no end' > log
echo unix://` + socket(t)
	var log syncBuffer
	shim, err := Runtime{Path: script(t, text)}.Start(t.Context(), "c", t.TempDir(), &log)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(shim.Close()).To(Succeed())
	lines := strings.Split(log.String(), "\n")
	g.Expect(lines).To(HaveLen(6), "%.1000q", log.String())
	g.Expect(lines[0]).To(Equal("first"))
	g.Expect(lines[1]).To(Equal("esc [0m"))
	g.Expect(lines[2]).To(And(HavePrefix("long xxx"), HaveLen(maxLogLine)))
	g.Expect(lines[3:]).To(Equal([]string{"next", "no end", ""}))
}

// A shim that floods its log holds neither Close nor the memory, nor does a writer that
// takes nothing.
func TestLogFlood(t *testing.T) {
	t.Parallel()
	pidFile := filepath.Join(t.TempDir(), "pid")
	text := "yes > log & echo $! > " + pidFile + "; echo unix://" + socket(t)
	for name, to := range map[string]func() io.Writer{
		"taken":   func() io.Writer { return io.Discard },
		"blocked": func() io.Writer { _, w := io.Pipe(); return w },
	} {
		t.Run(name, func(t *testing.T) {
			g := NewWithT(t)
			shim, err := Runtime{Path: script(t, text)}.Start(t.Context(), "c", t.TempDir(), to())
			g.Expect(err).NotTo(HaveOccurred())
			began := time.Now()
			g.Expect(shim.Close()).To(Succeed())
			g.Expect(time.Since(began)).To(BeNumerically("<", 5*time.Second))
			data, err := os.ReadFile(pidFile)
			g.Expect(err).NotTo(HaveOccurred())
			pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
			g.Expect(err).NotTo(HaveOccurred())
			g.Eventually(func() string { return processState(pid) }, 5*time.Second).Should(BeElementOf("", "Z"), "nobody reads it: SIGPIPE")
		})
	}
}

func TestLogThatIsNoFIFO(t *testing.T) {
	t.Parallel()
	for name, put := range map[string]func(path string) error{
		"file": func(p string) error { return os.WriteFile(p, []byte("kept"), 0o600) },
		"link": func(p string) error { return os.Symlink("/etc/hostname", p) },
	} {
		g := NewWithT(t)
		bundle := t.TempDir()
		g.Expect(put(filepath.Join(bundle, logFIFO))).To(Succeed())
		_, err := Runtime{Path: script(t, "touch ran")}.Start(t.Context(), "c", bundle, nil)
		g.Expect(err).To(HaveOccurred(), name)
		g.Expect(filepath.Join(bundle, "ran")).NotTo(BeAnExistingFile())
	}
}
