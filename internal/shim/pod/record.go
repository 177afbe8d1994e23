package pod

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/husk-cri/husk/internal/sandbox"
	"github.com/husk-cri/husk/pkg/imageref"
)

// KilledStatus is the exit status of a container that went down with its shim: 128
// and SIGKILL, as a shell has it.
const KilledStatus = 128 + 9

// destroyTimeout is how long an OCI runtime may take to kill and delete a container
// of a dead shim: a runtime that hangs must not keep the pod's other containers alive.
const destroyTimeout = 30 * time.Second

// outputDelay is how long a runtime's output is waited for once the runtime has ended: what
// it has left behind may hold it open as long as it likes.
const outputDelay = time.Second

// Record is what outlives the shim of a container: enough to kill it, to clean up
// after it and to answer for it.
type Record struct {
	// ID, Bundle and Sandbox identify the container; Sandbox is set for the pause
	// container.
	ID      string `json:"id"`
	Bundle  string `json:"bundle"`
	Sandbox bool   `json:"sandbox,omitempty"`
	// Runtime and RuntimeRoot are the OCI runtime's binary and its state directory.
	Runtime     string `json:"runtime"`
	RuntimeRoot string `json:"runtimeRoot"`
	// Cgroup is the container's linux.cgroupsPath.
	Cgroup string `json:"cgroup,omitempty"`
	// ExitsDir is where CRI-O watches for exits; empty where it is not there.
	ExitsDir string `json:"exitsDir,omitempty"`
	// Stdin, Stdout, Stderr and Terminal are as CRI-O gave them.
	Stdin    string `json:"stdin,omitempty"`
	Stdout   string `json:"stdout,omitempty"`
	Stderr   string `json:"stderr,omitempty"`
	Terminal bool   `json:"terminal,omitempty"`
	// Image is what the container runs from; nil for the pause container, and before it
	// is pulled. ImageMounts are the images that are mounted into it.
	Image       *Image  `json:"image,omitempty"`
	ImageMounts []Image `json:"imageMounts,omitempty"`
	// Pid is the container's first process; 0 before it is created.
	Pid uint32 `json:"pid,omitempty"`
	// ExitedAt and ExitStatus are set once that process has ended.
	ExitedAt   time.Time `json:"exitedAt,omitzero"`
	ExitStatus uint32    `json:"exitStatus,omitempty"`
}

// Image is an image that was pulled inside the pod's sandbox.
type Image struct {
	// Reference is repository@digest, as it was pulled.
	Reference string `json:"reference"`
	// ManifestDigest is the digest of the manifest, and ImageID the image ID of the CRI.
	ManifestDigest imageref.ManifestDigest `json:"manifestDigest"`
	ImageID        imageref.ImageID        `json:"imageID"`
	// PulledAt is when the pod's store was done with it.
	PulledAt time.Time `json:"pulledAt"`
}

// On returns r as of a container that is on one more image: the first is the one it
// runs from, the others are mounted into it.
func (r Record) On(image Image) Record {
	if r.Image == nil {
		r.Image = &image
		return r
	}
	r.ImageMounts = append(slices.Clone(r.ImageMounts), image)
	return r
}

// MaxPulls is how many images a pod's shim pulls at once, beside those that a container
// is being created from. Each takes up to 64 MiB of the pod's memory.
const MaxPulls = 2

// PullName names the child, and so its cgroup, of one of [MaxPulls] pulls of a pod.
// Another pod may be in the same cgroup.
func PullName(sandboxID string, slot int) string { return fmt.Sprintf("%s-pull-%d", sandboxID, slot) }

// Exited returns r as of a container that ended now, unless it had ended before.
func (r Record) Exited(at time.Time, status uint32) Record {
	if r.ExitedAt.IsZero() {
		r.ExitedAt, r.ExitStatus = at, status
	}
	return r
}

// Destroy kills the container's processes and removes what its runtime keeps of it
// and its cgroups. It is for containers whose shim is gone. A container that does
// not exist is no error.
func (r Record) Destroy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, destroyTimeout)
	defer cancel()
	errs := []error{r.delete(ctx)}
	if r.Cgroup == "" {
		return errors.Join(errs...)
	}
	names := []string{r.ID}
	for slot := range MaxPulls {
		if r.Sandbox {
			names = append(names, PullName(r.ID, slot))
		}
	}
	for _, name := range names {
		errs = append(errs, sandbox.RemoveCgroup(ctx, r.Cgroup, name))
	}
	return errors.Join(errs...)
}

// delete has the OCI runtime kill the container and forget it.
func (r Record) delete(ctx context.Context) error {
	// A runtime would make its directory, for ever, only to find nothing in it.
	if _, err := os.Stat(r.RuntimeRoot); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	cmd := exec.CommandContext(ctx, r.Runtime, "--root", r.RuntimeRoot, "delete", "--force", r.ID)
	cmd.WaitDelay = outputDelay
	out, err := cmd.CombinedOutput()
	if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return fmt.Errorf("delete container %s: %w: %.500s", r.ID, err, out)
	}
	return nil
}

// AnnounceExit tells CRI-O that the container has ended, through the directory that
// CRI-O watches. CRI-O does so itself for a container whose exit it waits for; it
// does not wait for those that are older than itself.
func (r Record) AnnounceExit() error {
	if r.ExitsDir == "" {
		return nil
	}
	err := os.WriteFile(filepath.Join(r.ExitsDir, r.ID), []byte("Exited"), 0o644)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // another directory is configured, or CRI-O is gone
	}
	if err != nil {
		return fmt.Errorf("announce the exit of container %s: %w", r.ID, err)
	}
	return nil
}
