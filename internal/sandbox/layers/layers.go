// Package layers pulls the layers of an image inside a pod's sandbox: package
// layerpull, in a child of package sandbox.
package layers

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	runc "github.com/containerd/go-runc"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/internal/sandbox"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
	"github.com/husk-cri/husk/pkg/layerpull"
	"github.com/husk-cri/husk/pkg/layerpull/keys"
	"github.com/husk-cri/husk/pkg/layerpull/policy"
	"github.com/husk-cri/husk/pkg/registryauth"
)

// ChildCommand is the first argument that makes a binary run [Child].
const ChildCommand = "husk-sandbox-pull"

// Request says what to pull and where the child runs.
type Request struct {
	// Name is unique in the pod and names the child's cgroup: the container's ID.
	Name string
	// Place is the pod's.
	Place sandbox.Place
	// OOMScoreAdj is the least the child has.
	OOMScoreAdj int
	// Pull is what the child does.
	Pull PullRequest
	// Progress is told how far the pull is. Its calls do not overlap, and none comes
	// after the pull; one that blocks holds it up. Zero: nobody is told.
	Progress func(layerpull.Progress)
}

// PullRequest is what a child is asked to do. An empty path means the default of
// containers/image.
type PullRequest struct {
	// Reference is repo@digest.
	Reference string `json:"reference"`
	// Credentials are for the registry of the reference and this pull alone. Zero: the
	// node's AuthFile.
	Credentials registryauth.Open `json:"credentials,omitzero"`
	// Timeout bounds the pull; StoreBytes bounds all layers of the store. Zero in
	// either: layerpull's default.
	Timeout    time.Duration `json:"timeout,omitempty"`
	StoreBytes int64         `json:"storeBytes,omitempty"`
	// StoreDir is where the layers go; TempDir, in it, is the child's TMPDIR.
	StoreDir string `json:"storeDir"`
	TempDir  string `json:"tempDir,omitempty"`
	// The node's configuration of registries, credentials, keys and policy.
	AuthFile          string `json:"authFile,omitempty"`
	KeysDir           string `json:"keysDir,omitempty"`
	KeyProviders      string `json:"keyProviders,omitempty"`
	PolicyPath        string `json:"policyPath,omitempty"`
	RegistriesConf    string `json:"registriesConf,omitempty"`
	RegistriesConfDir string `json:"registriesConfDir,omitempty"`
	RegistriesD       string `json:"registriesD,omitempty"`
	CertsDir          string `json:"certsDir,omitempty"`
	// UntrustedNetwork is as in layerpull.Config; [Runner] sets it in a pod's network.
	UntrustedNetwork bool `json:"untrustedNetwork,omitempty"`
	// Rules say which images may run, by encryption and signature.
	Rules policy.Config `json:"rules"`
}

// Image is what a pull left in the store.
type Image struct {
	// ManifestDigest is the digest of the manifest that was pulled, and ImageID the
	// image ID of the CRI.
	ManifestDigest imageref.ManifestDigest `json:"manifestDigest"`
	ImageID        imageref.ImageID        `json:"imageID"`
	// Layers counts its layers, and Bytes is what they unpack to.
	Layers int   `json:"layers"`
	Bytes  int64 `json:"bytes"`
	// PulledAt is when this store was done with it, by this pull or an earlier one, and
	// Took how long that was.
	PulledAt time.Time     `json:"pulledAt"`
	Took     time.Duration `json:"took"`
	// LayerDirs are the unpacked layers, the lowest first.
	LayerDirs []string `json:"layerDirs"`
	// RootDir is the one of them that gives "/" its mode and owner; empty is none.
	RootDir string `json:"rootDir,omitempty"`
	// Config is the image config.
	Config imgspec.Image `json:"config"`
}

// check refuses what only a child answers that was taken over: a container would get
// the directories as its root.
func (i Image) check(storeDir string) error {
	if i.ManifestDigest.IsZero() || i.ImageID.IsZero() {
		return errors.New("the child did not say which image it pulled")
	}
	if i.Layers < 0 || i.Bytes < 0 || i.Took < 0 {
		return errors.New("the child answered a negative number")
	}
	for _, dir := range i.LayerDirs {
		if !strings.HasPrefix(dir, storeDir+"/") || filepath.Clean(dir) != dir {
			return errors.New("the child answered with a directory outside of the store")
		}
	}
	if i.RootDir != "" && !slices.Contains(i.LayerDirs, i.RootDir) {
		return errors.New("the child answered with a root that is no layer")
	}
	return nil
}

// Puller pulls an image into a store; it runs in the child.
type Puller interface {
	// Pull tells progress, which is never nil, how far it is.
	Pull(ctx context.Context, req PullRequest, progress func(layerpull.Progress)) (Image, error)
}

// Runner starts children that pull.
type Runner struct {
	// Monitor is the one that reaps the children of the calling process; nil is
	// sandbox.Plain.
	Monitor runc.ProcessMonitor
	// Environ is the caller's environment, as of os.Environ; a child gets its proxies.
	Environ []string
}

// Run runs a pull in a child and returns its answer. A canceled context kills the
// child and everything it started. Errors repeat no credential of the request.
func (r Runner) Run(ctx context.Context, req Request) (Image, error) {
	op := "pull " + req.Pull.Reference + " in the sandbox"
	// No home: nothing of a user of the host's is read.
	env := []string{"HOME=/nonexistent"}
	if req.Pull.TempDir != "" {
		env = append(env, "TMPDIR="+req.Pull.TempDir)
	}
	req.Pull.UntrustedNetwork = req.Place.NetNS != ""
	job := sandbox.Job{
		Command:     ChildCommand,
		Op:          op,
		Name:        req.Name,
		Place:       req.Place,
		OOMScoreAdj: req.OOMScoreAdj,
		Env:         env,
		Variables:   sandbox.Environment(r.Environ, req.Place),
	}
	if req.Progress != nil {
		job.Progress = func(report json.RawMessage) {
			var p layerpull.Progress
			// A report that is none is of a child that was taken over: it has its own loss.
			if json.Unmarshal(report, &p) == nil && min(int64(p.Layers), int64(p.LayersDone), p.Bytes, p.BytesDone) >= 0 {
				req.Progress(p)
			}
		}
	}
	var image Image
	err := sandbox.Runner{Monitor: r.Monitor}.Run(ctx, job, req.Pull, &image)
	if err != nil {
		return Image{}, registryauth.Credentials(req.Pull.Credentials).Scrub(err)
	}
	if err := image.check(req.Pull.StoreDir); err != nil {
		return Image{}, errdefs.New(errdefs.Internal, op, err)
	}
	return image, nil
}

// Child is the body of a child that pulls; see [sandbox.Serve].
func Child(ctx context.Context, in io.Reader, out io.Writer, puller Puller) error {
	return sandbox.Serve(ctx, in, out, func(ctx context.Context, req PullRequest, report sandbox.Report) (Image, error) {
		return puller.Pull(ctx, req, func(p layerpull.Progress) { report(p) })
	})
}

// Layers is the [Puller] of package layerpull. Its zero value is ready.
type Layers struct{}

var _ Puller = Layers{}

// Pull implements [Puller].
func (Layers) Pull(ctx context.Context, req PullRequest, progress func(layerpull.Progress)) (Image, error) {
	op := "pull " + req.Reference
	// Keys pass through this process, and the pod pays for its memory.
	if err := keys.NoCoreDump(); err != nil {
		return Image{}, errdefs.New(errdefs.Internal, op, err)
	}
	debug.SetMemoryLimit(layerpull.MemoryLimit)
	ref, err := imageref.ParseReference(req.Reference)
	if err != nil {
		return Image{}, errdefs.New(errdefs.InvalidArgument, op, err)
	}
	store, err := layerpull.OpenStore(req.StoreDir)
	if err != nil {
		return Image{}, err
	}
	image, err := layerpull.Pull(ctx, ref, store, layerpull.Config{
		AuthFile:          req.AuthFile,
		KeysDir:           req.KeysDir,
		KeyProviders:      req.KeyProviders,
		PolicyPath:        req.PolicyPath,
		RegistriesConf:    req.RegistriesConf,
		RegistriesConfDir: req.RegistriesConfDir,
		RegistriesD:       req.RegistriesD,
		CertsD:            req.CertsDir,
		UntrustedNetwork:  req.UntrustedNetwork,
		Rules:             req.Rules,
		Credentials:       registryauth.Credentials(req.Credentials),
		Progress:          progress,
		Timeouts:          layerpull.Timeouts{Pull: req.Timeout},
		Limits:            layerpull.Limits{StoreBytes: req.StoreBytes},
	})
	if err != nil {
		return Image{}, err
	}
	return Image{
		ManifestDigest: image.Manifest, ImageID: image.ConfigDigest.ImageID(), Layers: image.Layers, Bytes: image.Bytes,
		PulledAt: image.PulledAt, Took: image.Took, LayerDirs: image.LayerDirs, RootDir: image.RootDir, Config: image.Config,
	}, nil
}
