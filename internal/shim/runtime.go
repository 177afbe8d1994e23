package shim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	runc "github.com/containerd/go-runc"
	"github.com/containerd/log"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"

	"github.com/husk-cri/husk/pkg/annotations"
	"github.com/husk-cri/husk/pkg/errdefs"
)

const (
	// featuresCommand is what CRI-O runs each handler's runtime with when it starts, to
	// learn what pods may ask for (pkg/config/config.go, initializeRuntimeFeatures).
	featuresCommand = "features"
	// oldestSpec is the least version of the runtime specification.
	oldestSpec = "1.0.0"
	// askTimeout ends a runtime that hangs: CRI-O's start waits for it.
	askTimeout = 10 * time.Second
	// maxAnswer bounds what a runtime says of itself: another program under the
	// configured path may print without an end.
	maxAnswer = 1 << 20
	// maxComplaint is how many bytes an error repeats of what a runtime complains.
	maxComplaint = 500
	// gvisorName begins what gVisor's runtime says of its version.
	gvisorName = "runsc version "
	// gvisorKind is the annotation by which gVisor sorts a pod's containers, before it
	// looks at CRI-O's.
	gvisorKind = "io.kubernetes.cri.container-type"
	// outputDelay is how long a runtime's output may stay open after the runtime ended.
	outputDelay = 200 * time.Millisecond
)

// printFeatures writes what the configured OCI runtime can do. CRI-O asks without
// naming a configuration, so it is the one at the default path that counts.
func printFeatures(ctx context.Context, w io.Writer) error {
	cfg, err := LoadConfig("")
	if err != nil {
		return err
	}
	data, err := featuresOf(ctx, cfg.Runtime)
	if err != nil {
		return err
	}
	_, err = w.Write(data)
	return err
}

// featuresOf returns a runtime's features document. Of a runtime that cannot write
// one (crun before 1.9, runsc) the document says which specification it knows and
// nothing more: CRI-O takes the rest for not supported.
func featuresOf(ctx context.Context, runtime string) ([]byte, error) {
	out, err := ask(ctx, runtime, featuresCommand)
	var doc features.Features
	if err == nil && json.Unmarshal(out, &doc) == nil && doc.OCIVersionMin != "" && doc.OCIVersionMax != "" {
		return out, nil
	}
	is, verr := describe(ctx, runtime)
	if verr != nil {
		return nil, errdefs.New(errdefs.Internal, "ask for the features of "+runtime, errors.Join(err, verr))
	}
	if is.spec == "" {
		return nil, errdefs.New(errdefs.Unsupported, "ask for the features of "+runtime, err)
	}
	return json.Marshal(features.Features{OCIVersionMin: oldestSpec, OCIVersionMax: is.spec})
}

// description is what a runtime says of itself.
type description struct {
	// spec is the version of the runtime specification that it implements, without a
	// suffix such as "-dev"; "" if it does not say.
	spec string
	// gvisor is set for runsc.
	gvisor bool
}

func describe(ctx context.Context, runtime string) (description, error) {
	out, err := ask(ctx, runtime, "--version")
	if err != nil {
		return description{}, err
	}
	is := description{gvisor: strings.HasPrefix(string(out), gvisorName)}
	for line := range strings.Lines(string(out)) {
		v, ok := strings.CutPrefix(strings.TrimSpace(line), "spec: ")
		if !ok {
			continue
		}
		is.spec, _, _ = strings.Cut(v, "-")
		if _, _, err := majorMinor(is.spec); err != nil {
			return description{}, fmt.Errorf("%s --version: %w", runtime, err)
		}
		break
	}
	return is, nil
}

// ask asks a runtime about itself and returns what it prints.
func ask(ctx context.Context, runtime, argument string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return call(ctx, runtime, argument)
}

// call runs a runtime, as long as ctx lasts, and returns what it prints.
func call(ctx context.Context, runtime string, arguments ...string) ([]byte, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	out, complaint := &answer{tooLong: cancel}, &answer{tooLong: cancel}
	cmd := exec.CommandContext(ctx, runtime, arguments...)
	cmd.Stdout, cmd.Stderr = out, complaint
	cmd.WaitDelay = outputDelay
	// Not cmd.Run: a shim reaps all its children, and takes their ends from who waits
	// for a child himself.
	exit, err := runc.Monitor.Start(cmd)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", runtime, strings.Join(arguments, " "), err)
	}
	code, err := runc.Monitor.Wait(cmd, exit)
	if err == nil && code != 0 {
		err = &runc.ExitError{Status: code}
	}
	if err = errors.Join(ctx.Err(), out.err, complaint.err, err); err != nil {
		return nil, fmt.Errorf("%s %s: %w: %.*s", runtime, strings.Join(arguments, " "), err, maxComplaint, bytes.TrimSpace(complaint.text.Bytes()))
	}
	return out.text.Bytes(), nil
}

// answer takes maxAnswer bytes, and calls tooLong when there are more.
type answer struct {
	text    bytes.Buffer // not embedded: io.Copy would read into it, past Write
	tooLong func()
	err     error
}

func (a *answer) Write(p []byte) (int, error) {
	if a.text.Len()+len(p) > maxAnswer {
		a.err = errdefs.Newf(errdefs.TooLarge, "read a runtime's answer", "more than %d bytes", maxAnswer)
		a.tooLong()
		return 0, a.err
	}
	return a.text.Write(p)
}

// runtimes knows what the runtimes of a pod say of themselves. Its zero value is ready.
type runtimes struct {
	mu    sync.Mutex
	known map[string]description
}

// fit makes spec one that the runtime understands.
func (r *runtimes) fit(ctx context.Context, runtime string, spec *rspec.Spec) error {
	is, err := r.describe(ctx, runtime)
	if err != nil { // it will say itself what it thinks of the spec
		log.G(ctx).WithError(err).Warn("the OCI runtime does not tell its version")
	}
	// A new cgroup has no limit of processes, and crun before 1.9 writes one that means
	// none as a number that the kernel refuses.
	if res := spec.Linux.Resources; res != nil && res.Pids != nil && res.Pids.Limit < 0 {
		res.Pids = nil
	}
	if is.gvisor {
		// Else it would run a pod's containers inside the process of the first, and the
		// task service, which waits for processes, would never see one of them end.
		if spec.Annotations == nil {
			spec.Annotations = map[string]string{}
		}
		spec.Annotations[gvisorKind] = annotations.ContainerTypeSandbox
	}
	return lowerVersion(spec, is.spec, runtime)
}

// lowerVersion gives spec a version that the runtime knows, if it says what it knows:
// CRI-O writes its own, and crun before 1.9 refuses each but 1.0. What a newer version
// adds is left to the runtime to ignore, save ID mappings of a mount: ignored, they would
// give the container files of other users.
func lowerVersion(spec *rspec.Spec, known, runtime string) error {
	if known == "" || spec.Version == "" {
		return nil
	}
	newer, err := newerSpec(spec.Version, known)
	if err != nil {
		return errdefs.New(errdefs.InvalidArgument, "read the version of a container's spec", err)
	}
	if !newer {
		return nil
	}
	for _, m := range spec.Mounts {
		if len(m.UIDMappings) > 0 || len(m.GIDMappings) > 0 {
			return errdefs.Newf(errdefs.Unsupported, "mount "+m.Destination,
				"with ID mappings: %s implements version %s of the specification, which has none", runtime, known)
		}
	}
	spec.Version = known
	return nil
}

func (r *runtimes) describe(ctx context.Context, runtime string) (description, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if is, ok := r.known[runtime]; ok {
		return is, nil
	}
	is, err := describe(ctx, runtime)
	if err != nil {
		return description{}, err
	}
	if r.known == nil {
		r.known = map[string]description{}
	}
	r.known[runtime] = is
	return is, nil
}

// newerSpec says whether version a is newer than b, by major and minor: patches add
// nothing.
func newerSpec(a, b string) (bool, error) {
	aMajor, aMinor, aErr := majorMinor(a)
	bMajor, bMinor, bErr := majorMinor(b)
	if err := errors.Join(aErr, bErr); err != nil {
		return false, err
	}
	return aMajor > bMajor || aMajor == bMajor && aMinor > bMinor, nil
}

func majorMinor(version string) (major, minor uint64, err error) {
	first, rest, _ := strings.Cut(version, ".")
	second, _, _ := strings.Cut(rest, ".")
	if major, err = strconv.ParseUint(first, 10, 16); err == nil {
		minor, err = strconv.ParseUint(second, 10, 16)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("%q is no version: %w", version, err)
	}
	return major, minor, nil
}

// runtimeMonitor starts runtimes as containerd's reaper does, but does not wait for
// the end of their output for ever: runsc leaves helpers behind that hold it open, and
// each start of a container would hang. Nothing is lost: a runtime that has ended
// writes no more, and the shim reads all the while.
type runtimeMonitor struct{ runc.ProcessMonitor }

// Start implements go-runc's ProcessMonitor.
func (m runtimeMonitor) Start(cmd *exec.Cmd) (chan runc.Exit, error) {
	cmd.WaitDelay = outputDelay
	return m.ProcessMonitor.Start(cmd)
}
