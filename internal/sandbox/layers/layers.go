// Package layers pulls the layers of an image inside a pod's sandbox: package
// layerpull, in a child of package sandbox.
package layers

import (
	"context"
	"io"
	"runtime/debug"

	runc "github.com/containerd/go-runc"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/internal/sandbox"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
	"github.com/husk-cri/husk/pkg/layerpull"
	"github.com/husk-cri/husk/pkg/layerpull/keys"
	"github.com/husk-cri/husk/pkg/layerpull/policy"
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
}

// PullRequest is what a child is asked to do. An empty path means the default of
// containers/image.
type PullRequest struct {
	// Reference is repo@digest.
	Reference string `json:"reference"`
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
	// ManifestDigest is the digest of the manifest that was pulled.
	ManifestDigest string `json:"manifestDigest"`
	// LayerDirs are the unpacked layers, the lowest first.
	LayerDirs []string `json:"layerDirs"`
	// RootDir is the one of them that gives "/" its mode and owner; empty is none.
	RootDir string `json:"rootDir,omitempty"`
	// Config is the image config.
	Config imgspec.Image `json:"config"`
}

// Puller pulls an image into a store; it runs in the child.
type Puller interface {
	Pull(ctx context.Context, req PullRequest) (Image, error)
}

// Runner starts children that pull.
type Runner struct {
	// Monitor is the one that reaps the children of the calling process; nil is
	// sandbox.Plain.
	Monitor runc.ProcessMonitor
}

// Run runs a pull in a child and returns its answer. A canceled context kills the
// child and everything it started.
func (r Runner) Run(ctx context.Context, req Request) (Image, error) {
	// No home: nothing of a user of the host's is read.
	env := []string{"HOME=/nonexistent"}
	if req.Pull.TempDir != "" {
		env = append(env, "TMPDIR="+req.Pull.TempDir)
	}
	req.Pull.UntrustedNetwork = req.Place.NetNS != ""
	var image Image
	err := sandbox.Runner{Monitor: r.Monitor}.Run(ctx, sandbox.Job{
		Command:     ChildCommand,
		Op:          "pull " + req.Pull.Reference + " in the sandbox",
		Name:        req.Name,
		Place:       req.Place,
		OOMScoreAdj: req.OOMScoreAdj,
		Env:         env,
	}, req.Pull, &image)
	if err != nil {
		return Image{}, err
	}
	return image, nil
}

// Child is the body of a child that pulls; see [sandbox.Serve].
func Child(ctx context.Context, in io.Reader, out io.Writer, puller Puller) error {
	return sandbox.Serve(ctx, in, out, puller.Pull)
}

// Layers is the [Puller] of package layerpull. Its zero value is ready.
type Layers struct{}

var _ Puller = Layers{}

// Pull implements [Puller].
func (Layers) Pull(ctx context.Context, req PullRequest) (Image, error) {
	// Keys pass through this process, and the pod pays for its memory.
	if err := keys.NoCoreDump(); err != nil {
		return Image{}, errdefs.New(errdefs.Internal, "pull "+req.Reference, err)
	}
	debug.SetMemoryLimit(layerpull.MemoryLimit)
	ref, err := imageref.ParseReference(req.Reference)
	if err != nil {
		return Image{}, errdefs.New(errdefs.InvalidArgument, "pull "+req.Reference, err)
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
	})
	if err != nil {
		return Image{}, err
	}
	return Image{ManifestDigest: image.Manifest.String(), LayerDirs: image.LayerDirs, RootDir: image.RootDir, Config: image.Config}, nil
}
