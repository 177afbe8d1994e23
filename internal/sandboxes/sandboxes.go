// Package sandboxes talks to the shims of the node's pods about the images in their
// stores: husk.shim.v1 over ttrpc, one connection for each call.
//
// A shim is no tenant's, but a child of it handles what tenants publish, so nothing it
// says is believed as it stands: every message, answer and wait is bounded, texts are
// kept to one printable line, and a shim that hangs, lies, dies or is too old for the
// service costs its own pod's pull and nothing else.
package sandboxes

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/ttrpc"

	"github.com/husk-cri/husk/internal/shim/pod"
	shimv1 "github.com/husk-cri/husk/pkg/api/shim/v1"
	"github.com/husk-cri/husk/pkg/imageref"
	"github.com/husk-cri/husk/pkg/registryauth"
)

// ErrOldShim is in the chain of the error of a pod whose shim is of a release that had
// no image service. Its kind is errdefs.Unsupported.
var ErrOldShim = errors.New("the pod's shim is older than the image service; a pod that is made anew has it")

const (
	// answerTimeout is how long a shim may take for what it has at hand, where a pull or
	// an operator waits for it: a busy node, not a hung shim.
	answerTimeout = 10 * time.Second
	// maxAnswer bounds one message of a shim in bytes: some hundred images with their
	// containers. ttrpc itself would take 4 MiB, and two bytes of a message can be a
	// hundred in memory, from each pod at once.
	maxAnswer = 256 << 10
)

// Client asks the shims of this node's pods. The zero value is ready. Its methods may be
// called at once.
type Client struct {
	// StateDir is where pods keep their state. Zero: pod.DefaultStateDir.
	StateDir string
	// Timeouts of tests. Zero: those of the constants.
	timeouts timeouts
}

// Image is an image that a pod's store holds in full.
type Image struct {
	// Reference is repository@digest, as it was pulled.
	Reference string
	// Manifest and ID identify it.
	Manifest imageref.ManifestDigest
	ID       imageref.ImageID
	// Layers is how many layers it has, and Bytes their unpacked size.
	Layers int
	Bytes  int64
	// PulledAt is when it was pulled, and Took how long that took.
	PulledAt time.Time
	Took     time.Duration
	// Containers of the pod that are on it.
	Containers []string
}

// Progress is how far a pull is. Layers that the store had are not counted.
type Progress struct {
	// Layers are to be fetched, LayersDone of them are complete. 0 before it is known.
	Layers, LayersDone int
	// Bytes, compressed, are to be fetched, BytesDone of them came.
	Bytes, BytesDone int64
}

// Store is a pod's store of layers.
type Store struct {
	// Kind is "memory" or "disk".
	Kind string
	// Limit is what it may hold and Used what it holds, in bytes. 0 before the first pull.
	Limit, Used int64
}

// Pull is a pull under way.
type Pull struct {
	Reference string
	Progress  Progress
	StartedAt time.Time
}

// Sandbox is one pod.
type Sandbox struct {
	// ID of the sandbox, and the pod as CRI-O names it; of a pod that did not answer
	// there is only the ID.
	ID, Name, Namespace, UID string
	Store                    Store
	// Pulls under way, the oldest first, and Images, the last pulled first.
	Pulls  []Pull
	Images []Image
	// Err is why the pod's shim did not answer, or not with what can be; nil if it did.
	Err error
}

// Remove removes an image from the store of a pod: a reference as in [Image], a manifest
// digest or an image ID. It returns what the store has more room for, in bytes. Errors:
// NotFound, also for the pod; InUse while a container is on it; Unavailable, and
// Unsupported with [ErrOldShim].
func (c Client) Remove(ctx context.Context, sandboxID, image string) (int64, error) {
	op := "remove image " + image + " from sandbox " + sandboxID
	var answer *shimv1.RemoveImageResponse
	err := c.call(ctx, sandboxID, c.times().answer, func(ctx context.Context, images shimv1.ImagesClient) (err error) {
		answer, err = images.RemoveImage(ctx, &shimv1.RemoveImageRequest{Image: image})
		return err
	})
	if err != nil {
		return 0, explain(op, "remove image "+image, err, registryauth.Credentials{})
	}
	return number(answer.GetFreed()), nil
}

// status asks a pod who it is, and what it does.
func (c Client) status(ctx context.Context, sandboxID string, timeout time.Duration) (Sandbox, error) {
	var answer *shimv1.ImageStatusResponse
	err := c.call(ctx, sandboxID, timeout, func(ctx context.Context, images shimv1.ImagesClient) (err error) {
		answer, err = images.ImageStatus(ctx, new(shimv1.ImageStatusRequest))
		return err
	})
	if err != nil {
		return Sandbox{}, explain("ask the shim of sandbox "+sandboxID, "", err, registryauth.Credentials{})
	}
	return sandboxOf(sandboxID, answer)
}

// call makes one unary call within the timeout.
func (c Client) call(ctx context.Context, sandboxID string, timeout time.Duration, do func(context.Context, shimv1.ImagesClient) error) error {
	within, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := c.dial(within, sandboxID)
	if err != nil {
		return err
	}
	client := ttrpc.NewClient(conn)
	defer func() { _ = client.Close() }() // nothing is under way any more
	// A shim that does not read what it is sent holds the call up before it can wait.
	defer context.AfterFunc(within, func() { _ = conn.Close() })()
	err = do(within, shimv1.NewImagesClient(client))
	switch {
	case err == nil, within.Err() == nil:
		return err
	case ctx.Err() != nil: // whatever the closed connection made of it
		return context.Cause(ctx)
	default:
		return fmt.Errorf("none within %s", timeout) // as of a connection that broke: see explain
	}
}

// timeouts are the waits that tests shorten.
type timeouts struct{ answer, silence, glance time.Duration }

func (c Client) times() timeouts {
	t := c.timeouts
	for _, d := range []struct {
		at   *time.Duration
		zero time.Duration
	}{{&t.answer, answerTimeout}, {&t.silence, silence}, {&t.glance, glanceTimeout}} {
		if *d.at == 0 {
			*d.at = d.zero
		}
	}
	return t
}

func (c Client) stateDir() string {
	if c.StateDir == "" {
		return pod.DefaultStateDir
	}
	return c.StateDir
}
