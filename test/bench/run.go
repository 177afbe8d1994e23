package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/internal/testkit/images"
	"github.com/husk-cri/husk/test/internal/rig"
)

const (
	// runTimeout bounds one command of either side.
	runTimeout = 2 * time.Minute
	// runWait is for what a killed command leaves behind.
	runWait = 10 * time.Second
	// runPod is the pod that has the layers already.
	runPod = "bench-run"
)

// runOptions sizes the comparison with podman.
type runOptions struct {
	// scale divides the sizes of the images; 1 is the full run.
	scale int
	// rounds is how often each side runs each image; the median counts.
	rounds int
}

// RunResult compares `husk run` with `podman run` of Debian, of the same plain image: from
// the start of the command to the first byte it prints. Both sides take turns.
type RunResult struct {
	Rounds int    `json:"rounds"`
	Scale  int    `json:"scale"`
	Peer   string `json:"peer"`
	// Fairness says what both sides have in common, and what they have not.
	Fairness []string  `json:"fairness"`
	Cases    []RunCase `json:"cases"`
}

// RunCase is one image. Ratios are podman / Husk of the medians: above 1, Husk is faster.
type RunCase struct {
	Image       string `json:"image"`
	Layers      int    `json:"layers"`
	StoredBytes int64  `json:"stored_bytes"`
	// Absent: neither side has anything of the image.
	Absent RunPair `json:"not_in_store"`
	// InStore: podman has the image unpacked. Husk has its record; the layers live in the
	// pod, so a new pod pulls them again.
	InStore RunPair `json:"in_store"`
	// WarmPod: Husk runs it in a pod that has the layers, podman as in InStore.
	WarmPod RunPair `json:"in_store_and_in_a_pod_with_the_layers"`
}

// RunPair is both sides of one kind of start.
type RunPair struct {
	Husk   RunTimes `json:"husk_run"`
	Podman RunTimes `json:"podman_run"`
	Ratio  float64  `json:"time_ratio"`
}

// RunTimes is one side: every round in milliseconds, and the median.
type RunTimes struct {
	Milliseconds []float64 `json:"milliseconds"`
	MedianMS     float64   `json:"median_ms"`
}

func fairness() []string {
	return []string{
		"same registry on this machine, same image without encryption, same bridge, CNI configuration and plugins, runc, cgroupfs",
		"podman's storage (overlay) is in the node's folder; husk's layers are in the store of the pod, below /var/lib/husk",
		"neither verifies signatures; page cache warm on both sides; the removal of container and network is not timed",
		"podman sets up one container; husk run sets up a pod (shim, pause container, network) with the container in it",
		"podman keeps the unpacked image on the host between runs; husk keeps only manifest and config there, and pulls the layers into each new pod",
	}
}

// engine is one side: a command line, and how the image is forgotten.
type engine struct {
	program     string
	global      []string
	run, forget []string
	env         []string
}

func measureRun(ctx context.Context, r *rig.Rig, bin string, opts runOptions) (any, error) {
	bin, err := filepath.Abs(bin)
	if err != nil {
		return nil, err
	}
	husk := engine{
		program: filepath.Join(bin, "husk"), global: []string{"--config", r.HuskConfig()},
		run:    []string{"run", "--rm", "--runtime", "husk", "--cgroup-parent", r.Node.CgroupParent},
		forget: []string{"rm", "--image"},
	}
	podman, err := newPodman(ctx, r)
	if err != nil {
		return nil, err
	}
	result := RunResult{Rounds: opts.rounds, Scale: opts.scale, Fairness: fairness()}
	if result.Peer, err = podman.output(ctx, "--version"); err != nil {
		return nil, err
	}
	for n, shape := range podShapes(opts.scale)[:2] {
		c, err := runCase(ctx, r, fmt.Sprintf("bench/run-%d", n), shape, opts.rounds, husk, podman)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", shape.name, err)
		}
		fmt.Fprintf(os.Stderr, "bench: run: %s: husk and podman: not in store %.0f and %.0f ms, in store %.0f and %.0f ms, in a pod with the layers %.0f and %.0f ms\n",
			c.Image, c.Absent.Husk.MedianMS, c.Absent.Podman.MedianMS, c.InStore.Husk.MedianMS, c.InStore.Podman.MedianMS,
			c.WarmPod.Husk.MedianMS, c.WarmPod.Podman.MedianMS)
		result.Cases = append(result.Cases, c)
	}
	return result, nil
}

// newPodman is podman with storage and configuration of its own in the rig's folder, and
// the node's CNI network.
func newPodman(ctx context.Context, r *rig.Rig) (engine, error) {
	program, err := exec.LookPath("podman")
	if err != nil {
		return engine{}, fmt.Errorf("the peer is missing: make bench-deps installs it: %w", err)
	}
	dir := filepath.Join(filepath.Dir(r.Dir), "podman")
	networks := filepath.Join(dir, "cni")
	if err := os.MkdirAll(networks, 0o700); err != nil {
		return engine{}, err
	}
	names, err := copyNetworks(filepath.Join(r.Dir, "conf", "cni"), networks)
	if err != nil {
		return engine{}, err
	}
	conf := fmt.Sprintf("[network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [\"/usr/lib/cni\"]\nnetwork_config_dir = %q\ndefault_network = %q\n"+
		"[engine]\ncgroup_manager = \"cgroupfs\"\nruntime = \"runc\"\nevents_logger = \"file\"\nstatic_dir = %q\ntmp_dir = %q\nvolume_path = %q\n",
		networks, names[0], filepath.Join(dir, "libpod"), filepath.Join(dir, "tmp"), filepath.Join(dir, "volumes"))
	file := filepath.Join(dir, "containers.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		return engine{}, err
	}
	p := engine{
		program: program,
		global:  []string{"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "overlay", "--storage-opt", "overlay.skip_mount_home=true"},
		// Limits that need no CAP_SYS_RESOURCE: podman raises them otherwise, and fails without it.
		run: []string{
			"run", "--rm", "--network", names[0], "--cgroup-parent", r.Node.CgroupParent, "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096",
		},
		forget: []string{"rmi"},
		env:    []string{"CONTAINERS_CONF=" + file, "CONTAINERS_REGISTRIES_CONF=" + r.Node.CRIO.RegistriesConf, "XDG_RUNTIME_DIR=" + dir},
	}
	_, err = p.output(ctx, "info") // its first start makes its database
	return p, err
}

// copyNetworks copies the CNI configurations of a directory and returns their names.
func copyNetworks(from, to string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(from, "*.conflist"))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		var network struct {
			Name string `json:"name"`
		}
		if err := json.Unmarshal(data, &network); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if err := os.WriteFile(filepath.Join(to, filepath.Base(file)), data, 0o600); err != nil {
			return nil, err
		}
		names = append(names, network.Name)
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("no network in %s", from)
	}
	return names, nil
}

// runCase pushes one image and runs it, the sides in turn, each first as often as the other.
func runCase(ctx context.Context, r *rig.Rig, repo string, shape layerShape, rounds int, husk, podman engine) (c RunCase, err error) {
	c.Image = shape.name
	image, summary, err := r.Push(ctx, repo, images.Spec{
		Busybox: images.DefaultBusybox, Config: imgspec.ImageConfig{Cmd: []string{"/none"}}, Layers: shape.layersOf(),
	})
	if err != nil {
		return c, err
	}
	c.Layers, c.StoredBytes = len(summary.Instances[0].Layers), summary.Instances[0].Bytes
	for round := range rounds {
		if err := inTurn(round, func() error { return c.cold(ctx, husk, image, true) }, func() error { return c.cold(ctx, podman, image, false) }); err != nil {
			return c, err
		}
	}
	if err := c.warm(ctx, rounds, husk, podman, image); err != nil {
		return c, err
	}
	for _, side := range []engine{husk, podman} {
		if err := side.forgets(ctx, image); err != nil {
			return c, err
		}
	}
	c.Absent.judge()
	c.InStore.judge()
	c.WarmPod.judge()
	return c, nil
}

// cold runs the image twice with one side: that has nothing of it, and then has it.
func (c *RunCase) cold(ctx context.Context, side engine, image string, husk bool) error {
	absent, inStore := &c.Absent.Podman, &c.InStore.Podman
	if husk {
		absent, inStore = &c.Absent.Husk, &c.InStore.Husk
	}
	if len(absent.Milliseconds) > 0 { // from the round before
		if err := side.forgets(ctx, image); err != nil {
			return err
		}
	}
	if err := side.first(ctx, absent, image); err != nil {
		return err
	}
	return side.first(ctx, inStore, image)
}

// warm runs the image with husk in a pod where it is running already.
func (c *RunCase) warm(ctx context.Context, rounds int, husk, podman engine, image string) (err error) {
	args := append(append([]string{}, husk.run[1:]...), "--pod", runPod)
	if _, err := husk.output(ctx, append(append([]string{"run", "--detach"}, args...), image, "/bin/sleep", "1000")...); err != nil {
		return err
	}
	defer func() {
		_, stopped := husk.output(context.WithoutCancel(ctx), "rm", "-f", "--pod", runPod)
		err = errors.Join(err, stopped)
	}()
	joining := husk
	joining.run = append([]string{"run"}, args...)
	for round := range rounds {
		if err := inTurn(round, func() error { return joining.first(ctx, &c.WarmPod.Husk, image) },
			func() error { return podman.first(ctx, &c.WarmPod.Podman, image) }); err != nil {
			return err
		}
	}
	return nil
}

// inTurn calls both, the other first in every second round. Nobody pays for what the
// other wrote.
func inTurn(round int, a, b func() error) error {
	if round%2 == 1 {
		a, b = b, a
	}
	unix.Sync()
	if err := a(); err != nil {
		return err
	}
	unix.Sync()
	return b()
}

// first runs the image and adds the time to its first output.
func (e engine) first(ctx context.Context, times *RunTimes, image string) error {
	took, err := e.firstByte(ctx, append(append([]string{}, e.run...), image, "/bin/sh", "-c", "echo ready")...)
	if err != nil {
		return err
	}
	times.Milliseconds = append(times.Milliseconds, milliseconds(took))
	return nil
}

func (e engine) forgets(ctx context.Context, image string) error {
	_, err := e.output(ctx, append(append([]string{}, e.forget...), image)...)
	return err
}

// firstByte runs a command, which must print "ready" and end well, and returns the time
// from its start to the first byte.
func (e engine) firstByte(ctx context.Context, args ...string) (took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, runTimeout)
	defer cancel()
	cmd, stderr := e.command(ctx, args)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	one := make([]byte, 1)
	_, readErr := io.ReadFull(stdout, one)
	took = time.Since(begin)
	rest, restErr := io.ReadAll(stdout)
	if err := cmd.Wait(); err != nil {
		return 0, fmt.Errorf("%s: %w: %s", cmd, err, stderr)
	}
	if err := errors.Join(readErr, restErr); err != nil {
		return 0, fmt.Errorf("%s: %w", cmd, err)
	}
	if text := string(one) + string(rest); text != "ready\n" {
		return 0, fmt.Errorf("%s printed %q", cmd, text)
	}
	return took, nil
}

// output runs a command and returns what it printed.
func (e engine) output(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, runTimeout)
	defer cancel()
	cmd, stderr := e.command(ctx, args)
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", cmd, err, stderr)
	}
	return strings.TrimSpace(string(out)), nil
}

func (e engine) command(ctx context.Context, args []string) (*exec.Cmd, *bytes.Buffer) {
	cmd := exec.CommandContext(ctx, e.program, append(append([]string{}, e.global...), args...)...)
	cmd.Env = append(os.Environ(), e.env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = runWait
	return cmd, &stderr
}

func (p *RunPair) judge() {
	p.Husk.MedianMS, p.Podman.MedianMS = median(p.Husk.Milliseconds), median(p.Podman.Milliseconds)
	p.Ratio = p.Podman.MedianMS / p.Husk.MedianMS
}
