package shim

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"

	"github.com/husk-cri/husk/internal/sandbox"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// fakeRuntime is a program that answers each argument with a text, or fails where it
// has none.
func fakeRuntime(t *testing.T, answers map[string]string) string {
	t.Helper()
	script := "#!/bin/sh\ncase $1 in\n"
	for argument, answer := range answers {
		script += fmt.Sprintf("%s) cat <<'END'\n%s\nEND\nexit;;\n", argument, answer)
	}
	path := filepath.Join(t.TempDir(), "runtime")
	if err := os.WriteFile(path, []byte(script+"esac\necho unknown command; exit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

const crunVersion = "crun version 1.8.1\nrundir: /run/crun\nspec: 1.0.0\n+SYSTEMD"

func TestFeatures(t *testing.T) {
	t.Parallel()
	const own = `{"ociVersionMin": "1.0.0", "ociVersionMax": "1.2.1", "mountOptions": ["rro"], "linux": {"mountExtensions": {"idmap": {"enabled": true}}}}`
	for name, tc := range map[string]struct {
		answers map[string]string
		want    string
		kind    errdefs.Kind
	}{
		"its own":            {map[string]string{"features": own, "--version": crunVersion}, own, 0},
		"none":               {map[string]string{"--version": crunVersion}, `{"ociVersionMin": "1.0.0", "ociVersionMax": "1.0.0"}`, 0},
		"no document":        {map[string]string{"features": "help", "--version": "spec: 1.1.0-rc.1"}, `{"ociVersionMin": "1.0.0", "ociVersionMax": "1.1.0"}`, 0},
		"one that lacks all": {map[string]string{"features": "{}", "--version": "spec: 1.1.0"}, `{"ociVersionMin": "1.0.0", "ociVersionMax": "1.1.0"}`, 0},
		"says nothing":       {map[string]string{"--version": "1"}, "", errdefs.Unsupported},
		"a wrong version":    {map[string]string{"--version": "spec: one"}, "", errdefs.Internal},
		"no runtime":         {nil, "", errdefs.Internal},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			got, err := featuresOf(t.Context(), fakeRuntime(t, tc.answers))
			if tc.want == "" {
				g.Expect(errdefs.Is(err, tc.kind)).To(BeTrue(), "%v", err)
				return
			}
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(got).To(MatchJSON(tc.want))
			// What CRI-O insists on.
			var doc features.Features
			g.Expect(json.Unmarshal(got, &doc)).To(Succeed())
			g.Expect([]string{doc.OCIVersionMin, doc.OCIVersionMax}).NotTo(ContainElement(""))
		})
	}
}

func TestFeaturesCommand(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	if _, err := exec.LookPath(defaultRuntime); err != nil {
		t.Skip("needs runc")
	}
	if _, err := os.Stat(DefaultConfigPath); err == nil {
		t.Skip("needs a machine without " + DefaultConfigPath)
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", featuresCommand)
	cmd.Env = append(os.Environ(), binaryEnv+"=1")
	got, err := cmd.CombinedOutput() // as CRI-O does: a word on standard error would spoil it
	g.Expect(err).NotTo(HaveOccurred())
	var doc features.Features
	g.Expect(json.Unmarshal(got, &doc)).To(Succeed(), "%s", got)
	g.Expect(doc.OCIVersionMax).NotTo(BeEmpty())
}

// Who asks for help gets it, and no sweep.
func TestUsage(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	say := func(args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", args...)
		cmd.Env = append(os.Environ(), binaryEnv+"=1")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	for _, help := range []string{"--help", "-h", "help"} {
		got, err := say(help)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(got).To(Equal(helpText))
	}
	for _, command := range []string{featuresCommand, sweepCommand} {
		got, err := say(command, "--help")
		g.Expect(err).To(HaveOccurred(), command)
		g.Expect(got).To(And(ContainSubstring("takes no arguments"), ContainSubstring(helpText)))
	}
}

func TestAnAnswerHasABound(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	path := filepath.Join(t.TempDir(), "runtime")
	g.Expect(os.WriteFile(path, []byte("#!/bin/sh\nexec cat /dev/zero\n"), 0o700)).To(Succeed())
	_, err := ask(t.Context(), path, "--version")
	g.Expect(errdefs.Is(err, errdefs.TooLarge)).To(BeTrue(), "%v", err)
}

func TestFit(t *testing.T) {
	t.Parallel()
	mapped := []rspec.Mount{{Destination: "/v", UIDMappings: []rspec.LinuxIDMapping{{Size: 1}}}}
	for name, tc := range map[string]struct {
		version, knows string
		mounts         []rspec.Mount
		want           string // "" is an error
	}{
		"crun 1.8":           {"1.2.1", crunVersion, nil, "1.0.0"},
		"runc 1.1":           {"1.2.1", "spec: 1.0.2-dev", nil, "1.0.2"},
		"as new":             {"1.2.1", "spec: 1.2.0", mapped, "1.2.1"},
		"newer":              {"1.2.1", "spec: 2.0.0", mapped, "1.2.1"},
		"says nothing":       {"1.2.1", "", mapped, "1.2.1"},
		"ID-mapped mounts":   {"1.2.1", crunVersion, mapped, ""},
		"no version":         {"", crunVersion, nil, ""},
		"a damaged version":  {"one", crunVersion, nil, ""},
		"a candidate":        {"1.1.0-rc.1", "spec: 1.1.0", nil, "1.1.0-rc.1"},
		"an older container": {"1.0.2-dev", "spec: 1.1.0", nil, "1.0.2-dev"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			spec := &rspec.Spec{Version: tc.version, Mounts: tc.mounts, Linux: &rspec.Linux{}}
			err := (&runtimes{}).fit(t.Context(), fakeRuntime(t, map[string]string{"--version": tc.knows}), spec)
			if tc.want == "" && tc.version != "" {
				g.Expect(err).To(HaveOccurred())
				return
			}
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(spec.Version).To(Equal(tc.want))
		})
	}
}

func TestFitTakesOutALimitThatIsNone(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	known := &runtimes{}
	runtime := fakeRuntime(t, map[string]string{"--version": crunVersion})
	for limit, kept := range map[int64]bool{-1: false, 0: true, 100: true} {
		spec := &rspec.Spec{Version: "1.2.1", Linux: &rspec.Linux{Resources: &rspec.LinuxResources{Pids: &rspec.LinuxPids{Limit: limit}}}}
		g.Expect(known.fit(t.Context(), runtime, spec)).To(Succeed())
		g.Expect(spec.Linux.Resources.Pids != nil).To(Equal(kept), "%d", limit)
	}
	g.Expect(known.known).To(HaveLen(1), "it is asked once")
}

// runsc would run a pod's containers in one process.
func TestFitSplitsPodsOfGvisor(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	for version, want := range map[string]string{"runsc version 1\nspec: 1.1.0-rc.1": "sandbox", crunVersion: "container"} {
		spec := &rspec.Spec{Linux: &rspec.Linux{}, Annotations: map[string]string{gvisorKind: "container"}}
		g.Expect((&runtimes{}).fit(t.Context(), fakeRuntime(t, map[string]string{"--version": version}), spec)).To(Succeed())
		g.Expect(spec.Annotations).To(HaveKeyWithValue(gvisorKind, want))
	}
}

// runsc leaves processes that hold its output open.
func TestRuntimeOutputIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", "echo said; sleep 60 & echo $! >&2")
	var out, pid bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &pid
	m := runtimeMonitor{sandbox.Plain{}}
	begin := time.Now()
	ec, err := m.Start(cmd)
	g.Expect(err).NotTo(HaveOccurred())
	_, _ = m.Wait(cmd, ec)
	g.Expect(time.Since(begin)).To(BeNumerically("<", 10*time.Second))
	g.Expect(out.String()).To(Equal("said\n"))
	var left int
	_, err = fmt.Sscan(pid.String(), &left)
	g.Expect(err).NotTo(HaveOccurred())
	p, err := os.FindProcess(left)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(p.Kill()).To(Succeed(), "it was still there")
}
