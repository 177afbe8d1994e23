package sandboxes

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/husk-cri/husk/internal/shim/pod"
	shimv1 "github.com/husk-cri/husk/pkg/api/shim/v1"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/registryauth"
)

const (
	// glanceTimeout bounds what one pod may cost a look at all of them.
	glanceTimeout = 2 * time.Second
	// atOnce is how many pods are asked at the same time: a node full of hung shims is
	// looked at within seconds, and a node of thousands without as many connections.
	atOnce = 64
	// maxPods bounds what is read of the directory of pods: fifty times what a kubelet
	// runs. More is another program's doing.
	maxPods = 5000
)

// IDs returns the sandbox IDs of the pods that have a shim, sorted.
func (c Client) IDs() ([]string, error) {
	const op = "list the sandboxes"
	dir, err := openOwned(c.stateDir(), podsDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // no pod has ever run
	}
	if err != nil {
		return nil, errdefs.New(errdefs.Internal, op, err)
	}
	defer func() { _ = dir.Close() }() // read only
	names, err := dir.Readdirnames(maxPods + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, errdefs.New(errdefs.Internal, op, err)
	}
	if len(names) > maxPods {
		return nil, errdefs.Newf(errdefs.TooLarge, op, "there are more than %d in %s", maxPods, dir.Name())
	}
	names = slices.DeleteFunc(names, func(name string) bool { return pod.ValidID(name) != nil })
	slices.Sort(names)
	return names, nil
}

// Find returns the sandbox whose ID begins with prefix. Errors: NotFound for none, and
// InvalidArgument for more than one.
func (c Client) Find(prefix string) (string, error) {
	op := "find sandbox " + prefix
	ids, err := c.IDs()
	if err != nil {
		return "", err
	}
	found := slices.DeleteFunc(ids, func(id string) bool { return prefix == "" || !strings.HasPrefix(id, prefix) })
	switch {
	case len(found) == 0:
		return "", errdefs.Newf(errdefs.NotFound, op, "no pod whose shim pulls layers has such an ID")
	case len(found) > 1 && found[0] != prefix:
		return "", errdefs.Newf(errdefs.InvalidArgument, op, "%d sandboxes have such IDs", len(found))
	}
	return found[0], nil
}

// List asks every pod of the node what it holds and pulls, a few of them at a time. A pod
// that did not answer is in the list with its Err, one that has left meanwhile is not.
func (c Client) List(ctx context.Context) ([]Sandbox, error) { return c.list(ctx, true) }

// Pulling is [Client.List] without the images.
func (c Client) Pulling(ctx context.Context) ([]Sandbox, error) { return c.list(ctx, false) }

func (c Client) list(ctx context.Context, images bool) ([]Sandbox, error) {
	ids, err := c.IDs()
	if err != nil {
		return nil, err
	}
	found := make([]Sandbox, len(ids))
	var asking sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for i, id := range ids {
		slots <- struct{}{} // each is given back within glanceTimeout
		asking.Go(func() {
			defer func() { <-slots }()
			found[i] = c.glance(ctx, id, images)
		})
	}
	asking.Wait()
	found = slices.DeleteFunc(found, func(s Sandbox) bool { return errdefs.Is(s.Err, errdefs.NotFound) })
	return found, nil
}

// glance looks at one pod.
func (c Client) glance(ctx context.Context, id string, images bool) Sandbox {
	within, cancel := context.WithTimeout(ctx, c.times().glance)
	defer cancel()
	s, err := c.status(within, id, c.times().glance)
	if err == nil && images {
		s.Images, err = c.images(within, id, c.times().glance)
	}
	if err != nil && ctx.Err() == nil && within.Err() != nil {
		err = errdefs.Newf(errdefs.Unavailable, "ask the shim of sandbox "+id, "no answer within %s", c.times().glance)
	}
	if err != nil {
		return Sandbox{ID: id, Err: err}
	}
	return s
}

// Images returns what the store of one pod holds in full, the last pulled first. Errors as
// of [Client.Remove].
func (c Client) Images(ctx context.Context, sandboxID string) ([]Image, error) {
	return c.images(ctx, sandboxID, c.times().answer)
}

func (c Client) images(ctx context.Context, id string, timeout time.Duration) ([]Image, error) {
	var answer *shimv1.ListImagesResponse
	err := c.call(ctx, id, timeout, func(ctx context.Context, client shimv1.ImagesClient) (err error) {
		answer, err = client.ListImages(ctx, new(shimv1.ListImagesRequest))
		return err
	})
	if err != nil {
		return nil, explain("list the images of sandbox "+id, "", err, registryauth.Credentials{})
	}
	return imagesOf(id, answer)
}
