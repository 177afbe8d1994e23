package shim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/log"
	"github.com/containerd/ttrpc"

	"github.com/husk-cri/husk/internal/sandbox/layers"
	"github.com/husk-cri/husk/internal/shim/keeper"
	shimv1 "github.com/husk-cri/husk/pkg/api/shim/v1"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
	"github.com/husk-cri/husk/pkg/layerpull"
	"github.com/husk-cri/husk/pkg/registryauth"
)

// maxReference bounds the name of an image in a request, which errors and logs repeat:
// the longest reference is a repository of 255 bytes, a tag of 128 and a digest.
const maxReference = 1 << 10

// checkName refuses a name that no image has.
func checkName(op, name string) error {
	if len(name) > maxReference {
		return errdefs.Newf(errdefs.InvalidArgument, op, "its name has %d bytes, the limit is %d", len(name), maxReference)
	}
	return nil
}

// imageService is the image service of a pod, beside its task service.
type imageService struct{ s *service }

var _ shimv1.ImagesService = imageService{}

// escapeTaskErrors is for the task service alone: the clients of the image service are
// not CRI-O, and take a text for what it is.
func escapeTaskErrors(ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
	if strings.HasPrefix(info.FullMethod, "/husk.shim.v1.Images/") {
		return method(ctx, unmarshal)
	}
	return keeper.EscapeErrors(ctx, unmarshal, info, method)
}

// respond makes the call and gives its error the form of the service's. ttrpc does not
// recover from a panic, which would end every container of the pod: respond does.
func respond[T any](ctx context.Context, op string, call func() (T, error)) (resp T, err error) {
	defer func() {
		if v := recover(); v != nil {
			log.G(ctx).Errorf("panic: %s: %s\n%s", op, errdefs.Redact(fmt.Sprint(v)), debug.Stack())
			err = errdefs.Newf(errdefs.Internal, op, "the shim had a panic, which its log shows")
		}
		err = keeper.ImageError(err)
	}()
	return call()
}

// PullImage implements the service. The request, and the credentials in it, live as long
// as the call does.
func (i imageService) PullImage(ctx context.Context, req *shimv1.PullImageRequest, stream shimv1.Images_PullImageServer) error {
	if err := checkName("pull an image", req.GetReference()); err != nil {
		return keeper.ImageError(err)
	}
	op := "pull " + req.GetReference()
	_, err := respond(ctx, op, func() (none struct{}, err error) {
		ref, err := imageref.ParseReference(req.GetReference())
		if err != nil {
			return none, errdefs.New(errdefs.InvalidArgument, op, err)
		}
		if ref.Digest().IsZero() {
			return none, errdefs.Newf(errdefs.InvalidArgument, op, "the reference is not pinned to a digest")
		}
		if ref, err = ref.Pin(ref.Digest()); err != nil {
			return none, errdefs.New(errdefs.InvalidArgument, op, err)
		}
		image, err := i.pull(ctx, ref, credentialsOf(req.GetCredentials()), stream)
		if err != nil {
			log.G(ctx).WithError(err).WithField("image", ref.String()).Error("pull failed")
			return none, err
		}
		return none, stream.Send(&shimv1.PullImageResponse{Result: i.result(ref, image)})
	})
	return err
}

// pull pulls and sends the progress meanwhile.
func (i imageService) pull(
	ctx context.Context, ref imageref.Reference, creds registryauth.Credentials, stream shimv1.Images_PullImageServer,
) (layers.Image, error) {
	p := &pull{news: make(chan struct{}, 1)}
	var sender sync.WaitGroup
	sender.Go(func() {
		for range p.news {
			message := &shimv1.PullImageResponse{Progress: progressMessage(i.s.images.progressOf(p))}
			if stream.Send(message) != nil {
				return // the client has left, and ctx with it
			}
		}
	})
	// What came last is sent before the result is, or the error.
	defer sender.Wait()
	defer close(p.news)
	return i.s.pullForPod(ctx, ref, creds, p)
}

func credentialsOf(c *shimv1.Credentials) registryauth.Credentials {
	return registryauth.Credentials{
		Username: c.GetUsername(), Password: c.GetPassword(), Auth: c.GetAuth(),
		IdentityToken: c.GetIdentityToken(), RegistryToken: c.GetRegistryToken(),
	}
}

func progressMessage(p layerpull.Progress) *shimv1.Progress {
	return &shimv1.Progress{
		Layers: uint32(p.Layers), LayersDone: uint32(p.LayersDone), Bytes: uint64(p.Bytes), BytesDone: uint64(p.BytesDone),
	}
}

func (i imageService) result(ref imageref.Reference, image layers.Image) *shimv1.Image {
	return &shimv1.Image{
		Reference: ref.String(), ManifestDigest: image.ManifestDigest.String(), ImageId: image.ImageID.String(),
		Layers: uint32(image.Layers), Bytes: uint64(image.Bytes), PulledAt: image.PulledAt.UnixNano(), Took: int64(image.Took),
		Containers: i.s.users()[ref.String()],
	}
}

// ListImages implements the service.
func (i imageService) ListImages(ctx context.Context, _ *shimv1.ListImagesRequest) (*shimv1.ListImagesResponse, error) {
	return respond(ctx, "list the images of pod "+i.s.pod.ID(), func() (*shimv1.ListImagesResponse, error) {
		_, images, err := i.images()
		if err != nil {
			return nil, err
		}
		users := i.s.users()
		resp := &shimv1.ListImagesResponse{}
		for _, image := range images {
			resp.Images = append(resp.Images, &shimv1.Image{
				Reference: image.Reference.String(), ManifestDigest: image.Manifest.String(), ImageId: image.ConfigDigest.ImageID().String(),
				Layers: uint32(image.Layers), Bytes: uint64(image.Bytes), PulledAt: image.PulledAt.UnixNano(), Took: int64(image.Took),
				Containers: users[image.Reference.String()],
			})
		}
		return resp, nil
	})
}

// images returns the store and what it holds; nil and nothing where there is none.
func (i imageService) images() (*layerpull.Store, []layerpull.StoredImage, error) {
	i.s.images.store.RLock()
	defer i.s.images.store.RUnlock()
	store, err := i.s.layers()
	if errors.Is(err, errNoStore) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	images, err := store.Images()
	return store, images, err
}

// RemoveImage implements the service. It waits for the pulls that are at work.
func (i imageService) RemoveImage(ctx context.Context, req *shimv1.RemoveImageRequest) (*shimv1.RemoveImageResponse, error) {
	if err := checkName("remove an image", req.GetImage()); err != nil {
		return nil, keeper.ImageError(err)
	}
	op := "remove image " + req.GetImage()
	return respond(ctx, op, func() (*shimv1.RemoveImageResponse, error) {
		resp := &shimv1.RemoveImageResponse{}
		err := i.s.images.remove(ctx, func() error {
			freed, err := i.remove(ctx, req.GetImage())
			resp.Freed = uint64(freed)
			return err
		})
		if err != nil {
			return nil, errdefs.New(errdefs.KindOf(err), op, err)
		}
		return resp, nil
	})
}

func (i imageService) remove(ctx context.Context, name string) (freed int64, err error) {
	store, images, err := i.images()
	if err != nil {
		return 0, err
	}
	var found []imageref.Reference
	for _, image := range images {
		if slices.Contains([]string{image.Reference.String(), image.Manifest.String(), image.ConfigDigest.ImageID().String()}, name) {
			found = append(found, image.Reference)
		}
	}
	if len(found) == 0 {
		return 0, errdefs.Newf(errdefs.NotFound, "look into the pod's store", "it does not hold the image")
	}
	users := i.s.users()
	for _, ref := range found {
		if on := users[ref.String()]; len(on) > 0 {
			return 0, errdefs.Newf(errdefs.InUse, "look for its containers", "container %s is on it", on[0])
		}
	}
	for _, ref := range found {
		bytes, err := store.Remove(ctx, ref)
		freed += bytes
		if err != nil {
			return freed, err
		}
	}
	return freed, nil
}

// ImageStatus implements the service.
func (i imageService) ImageStatus(ctx context.Context, _ *shimv1.ImageStatusRequest) (*shimv1.ImageStatusResponse, error) {
	return respond(ctx, "tell the status of the images of pod "+i.s.pod.ID(), func() (*shimv1.ImageStatusResponse, error) {
		resp := &shimv1.ImageStatusResponse{SandboxId: i.s.pod.ID()}
		limit, used, kind := i.s.store.size()
		if known := i.s.images.known(); known != nil {
			resp.PodName, resp.PodNamespace, resp.PodUid = known.identity.Name, known.identity.Namespace, known.identity.UID
			kind = cmp.Or(kind, known.cfg.Store)
		}
		resp.Store = &shimv1.Store{Kind: kind, Size: uint64(max(limit, 0)), Used: uint64(max(used, 0))}
		for _, p := range i.s.images.underWay() {
			resp.Pulls = append(resp.Pulls, &shimv1.Pull{
				Reference: p.reference, Progress: progressMessage(p.progress), StartedAt: p.started.UnixNano(),
			})
		}
		return resp, nil
	})
}
