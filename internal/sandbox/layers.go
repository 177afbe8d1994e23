package sandbox

import (
	"context"

	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
	"github.com/husk-cri/husk/pkg/layerpull"
)

// Layers is the [Puller] of package layerpull. Its zero value is ready.
type Layers struct{}

var _ Puller = Layers{}

// Pull implements [Puller].
func (Layers) Pull(ctx context.Context, req PullRequest) (Image, error) {
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
		PolicyPath:        req.PolicyPath,
		RegistriesConf:    req.RegistriesConf,
		RegistriesConfDir: req.RegistriesConfDir,
		RegistriesD:       req.RegistriesD,
		CertsD:            req.CertsDir,
	})
	if err != nil {
		return Image{}, err
	}
	return Image{ManifestDigest: image.Manifest.String(), LayerDirs: image.LayerDirs, RootDir: image.RootDir, Config: image.Config}, nil
}
