package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sync/errgroup"

	"github.com/husk-cri/husk/internal/testkit/images"
	"github.com/husk-cri/husk/test/internal/rig"
)

// bulkAtOnce bounds what is done at once to many images: the machine has few cores.
const bulkAtOnce = 4

// pushMany pushes n images that share one layer and have configs, and so IDs, of
// their own. It returns their references.
func pushMany(ctx context.Context, r *rig.Rig, repo string, n int) ([]string, error) {
	base, _, err := r.Push(ctx, repo, images.Spec{Busybox: images.DefaultBusybox})
	if err != nil {
		return nil, err
	}
	from, err := name.ParseReference(base, name.Insecure)
	if err != nil {
		return nil, err
	}
	image, err := remote.Image(from, remote.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", base, err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	refs := make([]string, n)
	return refs, atOnce(ctx, n, func(ctx context.Context, i int) error {
		own := config.DeepCopy()
		own.Config.Labels = map[string]string{"number": strconv.Itoa(i)}
		twin, err := mutate.ConfigFile(image, own)
		if err != nil {
			return err
		}
		refs[i] = fmt.Sprintf("%s/%s:v%d", r.Node.Registry.Address, repo, i)
		to, err := name.ParseReference(refs[i], name.Insecure)
		if err != nil {
			return err
		}
		return remote.Write(to, twin, remote.WithContext(ctx))
	})
}

// atOnce does n things, a few at once.
func atOnce(ctx context.Context, n int, do func(ctx context.Context, i int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(bulkAtOnce)
	for i := range n {
		group.Go(func() error { return do(ctx, i) })
	}
	return group.Wait()
}
