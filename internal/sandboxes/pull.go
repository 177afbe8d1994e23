package sandboxes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/ttrpc"

	shimv1 "github.com/husk-cri/husk/pkg/api/shim/v1"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
	"github.com/husk-cri/husk/pkg/registryauth"
)

const (
	// silence is how long a pull may say nothing until its shim is asked whether it
	// lives: a slow registry is not a hung shim.
	silence = 10 * time.Second
	// maxMisses is how many such questions in a row may stay without an answer.
	maxMisses = 3
	// pace is the least time from one message to the next: a shim reports ten times a
	// second, and one that floods is held up instead of heard.
	pace = 20 * time.Millisecond
	// lastWords is how long a shim may take to end its stream after the result.
	lastWords = time.Second
)

// PullRequest asks a pod's shim for the layers of an image.
type PullRequest struct {
	// Sandbox is the pod's.
	Sandbox string
	// Reference is repository@digest.
	Reference imageref.Reference
	// Credentials for the registry of the reference, for this pull alone.
	Credentials registryauth.Credentials
	// Progress is told how far the pull is, by one goroutine, while it runs. It must not
	// block. Zero: nobody is.
	Progress func(Progress)
}

// Pull has the shim of a pod pull the layers of an image into the pod's store, from the
// pod's network and in its cgroup, and returns the image as the shim has it. The caller
// compares it with what was asked for. The pull in the pod ends when ctx does.
//
// Errors have the kind that the shim gives (RegistryUnavailable, PolicyRefused, TooLarge,
// KeyUnavailable, ...); Unavailable when the shim, or the pod, is not there or does not
// answer, and Unsupported with [ErrOldShim]. None repeats a credential.
func (c Client) Pull(ctx context.Context, req PullRequest) (Image, error) {
	op := "pull the layers of " + req.Reference.String() + " in sandbox " + req.Sandbox
	// A shim that ends in the middle of a pull is followed by one that knows no images,
	// so whether this one does is asked before.
	if _, err := c.status(ctx, req.Sandbox, c.times().answer); err != nil {
		return Image{}, gone(op, err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	conn, err := c.dial(ctx, req.Sandbox)
	if err != nil {
		return Image{}, gone(op, err)
	}
	client := ttrpc.NewClient(conn)
	defer func() { _ = client.Close() }()                       // ends the pull in the pod, if it has not ended
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })() // also where the shim reads nothing
	heard := make(chan struct{}, 1)
	go c.watch(ctx, req.Sandbox, heard, cancel)
	image, err := receive(ctx, client, req, heard)
	if err == nil {
		return image, nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	err = explain(op, "pull "+req.Reference.String(), err, req.Credentials)
	switch kind := errdefs.KindOf(err); {
	case errors.Is(err, ErrOldShim):
		err = errdefs.Newf(errdefs.Unavailable, op, "the shim ended")
	case kind == errdefs.Canceled && ctx.Err() == nil: // nobody but the shim itself, as it ends
		err = errdefs.New(errdefs.Unavailable, op, err)
	}
	return Image{}, err
}

// gone is the error of a pull for a pod that has left meanwhile, or whose shim has: kubelet
// asks again, for the next one.
func gone(op string, err error) error {
	kind := errdefs.KindOf(err)
	if kind == errdefs.NotFound {
		kind = errdefs.Unavailable
	}
	return errdefs.New(kind, op, err)
}

// receive puts the request and listens until the result.
func receive(ctx context.Context, client *ttrpc.Client, req PullRequest, heard chan<- struct{}) (Image, error) {
	c := req.Credentials
	stream, err := shimv1.NewImagesClient(client).PullImage(ctx, &shimv1.PullImageRequest{
		Reference: req.Reference.String(),
		Credentials: &shimv1.Credentials{
			Username: c.Username, Password: c.Password, Auth: c.Auth, IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken,
		},
	})
	if err != nil {
		return Image{}, err
	}
	for {
		answer, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return Image{}, errors.New("it ended the pull without a result")
		}
		if err != nil {
			return Image{}, err
		}
		select {
		case heard <- struct{}{}:
		default: // the watch has not looked at the one before
		}
		if result := answer.GetResult(); result != nil {
			image, err := imageOf(result)
			if err != nil {
				return Image{}, err
			}
			return image, finish(ctx, stream)
		}
		if p := answer.GetProgress(); p != nil && req.Progress != nil {
			req.Progress(progressOf(p))
		}
		select {
		case <-ctx.Done():
			return Image{}, ctx.Err()
		case <-time.After(pace):
		}
	}
}

// finish waits for the end of a stream that had its result, so that the shim is not
// interrupted; an error instead of the end is the pull's.
func finish(ctx context.Context, stream shimv1.Images_PullImageClient) error {
	ended := make(chan error, 1)
	go func() {
		_, err := stream.Recv()
		ended <- err
	}()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(lastWords):
		return nil
	case err := <-ended:
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	}
}

// watch ends a pull whose shim says nothing and does not answer either.
func (c Client) watch(ctx context.Context, sandboxID string, heard <-chan struct{}, end context.CancelCauseFunc) {
	misses, wait := 0, c.times().silence
	for {
		select {
		case <-ctx.Done():
			return
		case <-heard:
			misses, wait = 0, c.times().silence
			continue
		case <-time.After(wait):
		}
		_, err := c.status(ctx, sandboxID, c.times().answer)
		if err == nil {
			misses, wait = 0, c.times().silence
			continue
		}
		wait = c.times().silence / 10 // one that hangs has taken its time to say nothing
		if misses++; misses == maxMisses {
			end(fmt.Errorf("it said nothing, and left %d questions open", misses))
			return
		}
	}
}
