package front_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/internal/front"
	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/manifestonly/storetest"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// fakeCRIO is a real CRI server that answers as CRI-O 1.34 does, as far as the
// front can tell: no runtime handler in sandbox status, records shown as nameless
// images, an empty image name for containers made from them.
type fakeCRIO struct {
	cri.UnimplementedRuntimeServiceServer
	cri.UnimplementedImageServiceServer

	records *storetest.Memory

	mu         sync.Mutex
	sandboxes  []*cri.PodSandbox // RuntimeHandler is not reported
	images     []*cri.Image
	containers []*cri.ContainerStatus
	created    []*cri.CreateContainerRequest
	pulled     []*cri.PullImageRequest
	removed    []string
	inUse      string            // an image that RemoveImage refuses
	asked      []string          // questions about sandboxes
	parents    map[string]string // traceparent by method
}

// sees notes the trace that a call belongs to.
func (f *fakeCRIO) sees(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	f.mu.Lock()
	if f.parents == nil {
		f.parents = map[string]string{}
	}
	f.parents[info.FullMethod[strings.LastIndex(info.FullMethod, "/")+1:]] = strings.Join(md.Get("traceparent"), ",")
	f.mu.Unlock()
	return handler(ctx, req)
}

func (f *fakeCRIO) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{RuntimeName: "fake"}, nil
}

func (f *fakeCRIO) PodSandboxStatus(_ context.Context, req *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, "PodSandboxStatus "+req.PodSandboxId)
	for _, s := range f.sandboxes {
		if s.Id != req.PodSandboxId {
			continue
		}
		answer := &cri.PodSandboxStatusResponse{
			Status:             &cri.PodSandboxStatus{Id: s.Id, Metadata: s.Metadata, Annotations: s.Annotations, Labels: s.Labels},
			ContainersStatuses: f.containers,
		}
		if req.Verbose {
			notes := map[string]string{"io.kubernetes.cri-o.RuntimeHandler": s.RuntimeHandler}
			maps.Copy(notes, s.Annotations)
			maps.Copy(notes, s.Labels)
			info, err := json.Marshal(map[string]any{"runtimeSpec": map[string]any{"annotations": notes}})
			if err != nil {
				return nil, err
			}
			answer.Info = map[string]string{"info": string(info)}
		}
		return answer, nil
	}
	return nil, status.Errorf(codes.NotFound, "could not find pod %q", req.PodSandboxId)
}

func (f *fakeCRIO) ListPodSandbox(_ context.Context, req *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, "ListPodSandbox")
	answer := new(cri.ListPodSandboxResponse)
	for _, s := range f.sandboxes {
		matches := true
		for k, v := range req.GetFilter().GetLabelSelector() {
			matches = matches && s.Labels[k] == v
		}
		if state := req.GetFilter().GetState(); matches && (state == nil || state.State == s.State) {
			answer.Items = append(answer.Items, &cri.PodSandbox{
				Id: s.Id, Metadata: s.Metadata, Labels: s.Labels, Annotations: s.Annotations, State: s.State, CreatedAt: s.CreatedAt,
			})
		}
	}
	return answer, nil
}

// lookup finds an image by ID, or an ordinary one by name.
func (f *fakeCRIO) lookup(name string) *cri.Image {
	all, err := f.all()
	if err != nil {
		return nil
	}
	for _, i := range all {
		if i.Id == name || len(name) >= 3 && strings.HasPrefix(i.Id, name) || slices.Contains(i.RepoTags, name) || slices.Contains(i.RepoDigests, name) {
			return i
		}
	}
	return nil
}

func (f *fakeCRIO) all() ([]*cri.Image, error) {
	records, err := f.records.List(context.Background())
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	all := slices.Clone(f.images)
	for _, r := range records {
		all = append(all, &cri.Image{Id: r.StorageID.String(), Size: 1})
	}
	return all, nil
}

func (f *fakeCRIO) ImageStatus(_ context.Context, req *cri.ImageStatusRequest) (*cri.ImageStatusResponse, error) {
	if req.GetImage().GetImage() == "" {
		return nil, status.Error(codes.Unknown, "no image specified")
	}
	name := req.Image.Image
	image, hex := f.lookup(name), strings.TrimPrefix(name, "sha256:")
	if image == nil && (hex != name || len(hex) < 64 && imageref.NewQuery(hex, nil).IsIDPrefix()) {
		return nil, status.Errorf(codes.Unknown, "short-name %q did not resolve to an alias", name)
	}
	return &cri.ImageStatusResponse{Image: image}, nil
}

func (f *fakeCRIO) ListImages(_ context.Context, req *cri.ListImagesRequest) (*cri.ListImagesResponse, error) {
	if name := req.GetFilter().GetImage().GetImage(); name != "" {
		if image := f.lookup(name); image != nil {
			return &cri.ListImagesResponse{Images: []*cri.Image{image}}, nil
		}
		return new(cri.ListImagesResponse), nil
	}
	all, err := f.all()
	return &cri.ListImagesResponse{Images: all}, err
}

func (f *fakeCRIO) StreamImages(req *cri.StreamImagesRequest, stream grpc.ServerStreamingServer[cri.StreamImagesResponse]) error {
	list, err := f.ListImages(stream.Context(), &cri.ListImagesRequest{Filter: req.GetFilter()})
	for _, image := range list.GetImages() {
		if err := stream.Send(&cri.StreamImagesResponse{Images: []*cri.Image{image}}); err != nil {
			return err
		}
	}
	return err
}

func (f *fakeCRIO) PullImage(_ context.Context, req *cri.PullImageRequest) (*cri.PullImageResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pulled = append(f.pulled, req)
	return &cri.PullImageResponse{ImageRef: "pulled-by-crio"}, nil
}

func (f *fakeCRIO) RemoveImage(_ context.Context, req *cri.RemoveImageRequest) (*cri.RemoveImageResponse, error) {
	name := req.GetImage().GetImage()
	image := f.lookup(name)
	f.mu.Lock()
	defer f.mu.Unlock()
	used := slices.ContainsFunc(f.containers, func(c *cri.ContainerStatus) bool { return c.ImageId == image.GetId() })
	if image != nil && (used || f.inUse == name) {
		return nil, status.Error(codes.Unknown, "delete image: image used by container-9: image is in use by a container")
	}
	f.removed = append(f.removed, name)
	f.images = slices.DeleteFunc(f.images, func(i *cri.Image) bool { return i.Id == image.GetId() })
	return new(cri.RemoveImageResponse), nil
}

func (f *fakeCRIO) CreateContainer(_ context.Context, req *cri.CreateContainerRequest) (*cri.CreateContainerResponse, error) {
	image := f.lookup(req.GetConfig().GetImage().GetImage())
	if image == nil {
		return nil, status.Errorf(codes.Unknown, "image %s not known", req.Config.Image.Image)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.created = append(f.created, req)
	id := fmt.Sprint("container-", len(f.created))
	name := ""
	if len(image.RepoTags) > 0 {
		name = image.RepoTags[0]
	}
	f.containers = append(f.containers, &cri.ContainerStatus{
		Id: id, Annotations: req.Config.Annotations, Metadata: req.Config.Metadata,
		Image: &cri.ImageSpec{Image: name}, ImageRef: image.Id, ImageId: image.Id,
	})
	return &cri.CreateContainerResponse{ContainerId: id}, nil
}

func (f *fakeCRIO) ContainerStatus(_ context.Context, req *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.containers {
		if c.Id == req.ContainerId {
			return &cri.ContainerStatusResponse{Status: c}, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "could not find container %q", req.ContainerId)
}

func (f *fakeCRIO) listed() []*cri.Container {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := make([]*cri.Container, 0, len(f.containers))
	for _, c := range f.containers {
		list = append(list, &cri.Container{
			Id: c.Id, Annotations: c.Annotations, Image: &cri.ImageSpec{Image: c.ImageId},
			ImageRef: c.ImageRef, ImageId: c.ImageId, Labels: c.Labels,
		})
	}
	return list
}

func (f *fakeCRIO) ListContainers(context.Context, *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	return &cri.ListContainersResponse{Containers: f.listed()}, nil
}

func (f *fakeCRIO) StreamContainers(_ *cri.StreamContainersRequest, stream grpc.ServerStreamingServer[cri.StreamContainersResponse]) error {
	for _, c := range f.listed() {
		if err := stream.Send(&cri.StreamContainersResponse{Containers: []*cri.Container{c}}); err != nil {
			return err
		}
	}
	return nil
}

func (f *fakeCRIO) GetContainerEvents(_ *cri.GetEventsRequest, stream grpc.ServerStreamingServer[cri.ContainerEventResponse]) error {
	f.mu.Lock()
	statuses := slices.Clone(f.containers)
	f.mu.Unlock()
	for _, event := range []*cri.ContainerEventResponse{{ContainerId: "one", ContainersStatuses: statuses}, {}} {
		if err := stream.Send(event); err != nil {
			return err
		}
	}
	return nil
}

// fakeRegistry is a Puller whose images are in memory.
type fakeRegistry struct {
	mu     sync.Mutex
	store  *storetest.Memory
	images map[string]manifestonly.Image
	asked  []manifestonly.Request
	wants  map[string]string // the password by image name
	wait   func(context.Context)
}

func (r *fakeRegistry) Pull(ctx context.Context, req manifestonly.Request) (manifestonly.Result, error) {
	img, _, err := r.Fetch(ctx, req)
	if err != nil {
		return manifestonly.Result{}, err
	}
	rec, err := r.Commit(ctx, img)
	return manifestonly.Result{Record: rec, Pulled: img.Pulled}, err
}

// Commit implements front.Puller.
func (r *fakeRegistry) Commit(ctx context.Context, img manifestonly.Image) (imageref.Record, error) {
	return r.store.Put(ctx, img)
}

// Fetch implements front.Puller.
func (r *fakeRegistry) Fetch(ctx context.Context, req manifestonly.Request) (manifestonly.Image, manifestonly.Stats, error) {
	if r.wait != nil {
		r.wait(ctx)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, req)
	none := manifestonly.Image{}
	img, ok := r.images[req.Name]
	if !ok {
		return none, manifestonly.Stats{}, errdefs.Newf(errdefs.RegistryUnavailable, "pull "+req.Name, "no such host")
	}
	if want := r.wants[req.Name]; want != "" && req.Credentials.Password != want {
		return none, manifestonly.Stats{}, errdefs.Newf(errdefs.Unauthorized, "pull "+req.Name, "the registry refused the credentials")
	}
	ref, err := imageref.ParseReference(req.Name)
	if err != nil {
		return none, manifestonly.Stats{}, err
	}
	img.Pulled = imageref.PulledReference{Reference: ref, Digest: img.Manifest.Digest, PulledAt: time.Now()}
	return img, manifestonly.Stats{Requests: 2, Bytes: 300}, nil
}

// PullHeld implements front.Held: what CRI-O holds is what was published, under
// names in its own repository.
func (r *fakeRegistry) PullHeld(ctx context.Context, id imageref.ImageID, ref imageref.Reference) (manifestonly.Result, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, img := range r.images {
		if published, err := imageref.ParseReference(name); err != nil || published.Repository() != ref.Repository() || img.ConfigDigest.ImageID() != id {
			continue
		}
		img.Pulled = imageref.PulledReference{Reference: ref, Digest: img.Manifest.Digest, PulledAt: time.Now()}
		rec, err := r.store.Put(ctx, img)
		return manifestonly.Result{Record: rec, Pulled: img.Pulled}, err
	}
	return manifestonly.Result{}, errdefs.Newf(errdefs.NotFound, "use held image", "none")
}

// Resolve implements front.Names; what may be an ID has no meaning as a short name.
func (r *fakeRegistry) Resolve(_ context.Context, name string) ([]imageref.Reference, error) {
	ref, err := imageref.ParseReference(name)
	if strings.HasPrefix(name, "sha256:") || imageref.NewQuery(name, nil).IsIDPrefix() {
		err = errors.New("a short name")
	}
	if err != nil {
		return nil, errdefs.New(errdefs.InvalidArgument, "resolve "+name, err)
	}
	return []imageref.Reference{ref}, nil
}

// publish makes an image available; salt tells apart images with one config.
func (r *fakeRegistry) publish(name, user, salt string) manifestonly.Image {
	config := imgspec.Image{Config: imgspec.ImageConfig{User: user, Cmd: []string{"/app"}}}
	raw, err := json.Marshal(config)
	if err != nil {
		panic(err)
	}
	d, err := imageref.ParseConfigDigest(digest.FromBytes(raw).String())
	if err != nil {
		panic(err)
	}
	manifest := []byte(fmt.Sprintf(`{"config":%q,"salt":%q}`, d, salt))
	m, err := imageref.ParseManifestDigest(digest.FromBytes(manifest).String())
	if err != nil {
		panic(err)
	}
	img := manifestonly.Image{
		Manifest: manifestonly.Blob{Digest: m, Bytes: manifest}, ConfigDigest: d, Config: raw,
		Parsed: config, Layers: 2, EncryptedLayers: 2, LayerBytes: 1 << 20,
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.images[name] = img
	return img
}

// fakeHandlers are handlers by name; the default is runc.
type fakeHandlers map[string]front.Handler

// allHandlers has runc, husk and kata.
func allHandlers() fakeHandlers {
	return fakeHandlers{
		"runc": {Name: "runc"},
		"husk": {Name: "husk", GuestPull: true, ResolvesNames: true},
		"kata": {Name: "kata", GuestPull: true},
	}
}

func (h fakeHandlers) Handler(name string) (front.Handler, bool) { f, ok := h[name]; return f, ok }
func (h fakeHandlers) Default() string                           { return "runc" }
func (h fakeHandlers) GuestPull() []string {
	var names []string
	for name, handler := range h {
		if handler.GuestPull {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
