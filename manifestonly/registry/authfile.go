package registry

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containers/image/v5/docker/reference"

	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// Start implements [manifestonly.Starter]: it takes the auth file that
// crio-credential-provider left for this namespace and image, as CRI-O newer than
// 1.34.0 does. The file serves one pull and is removed before that begins, so nothing
// of it is left however the pull ends, be it by SIGKILL.
func (s *Source) Start(_ context.Context, req manifestonly.Request) (manifestonly.Source, func(), error) {
	none := func() {}
	if s.config.NamespacedAuthDir == "" || req.Namespace == "" {
		return s, none, nil
	}
	op := "use the auth file of namespace " + req.Namespace + " to pull " + req.Name
	if err := checkNamespace(req.Namespace); err != nil {
		return nil, nil, err
	}
	// The name as kubelet normalises it, short names included: the provider was
	// asked with that one.
	named, err := reference.ParseNormalizedNamed(req.Name)
	if err != nil {
		return nil, nil, errdefs.New(errdefs.InvalidArgument, op, err)
	}
	sum := sha256.Sum256([]byte(named.Name()))
	base := req.Namespace + "-" + hex.EncodeToString(sum[:])
	taken, err := take(s.config.NamespacedAuthDir, base)
	if errors.Is(err, fs.ErrNotExist) {
		return s, none, nil
	}
	if err != nil {
		return nil, nil, errdefs.New(errdefs.Internal, op, err)
	}
	own := *s
	own.authFile = fmt.Sprintf("/proc/self/fd/%d", taken.Fd())
	return &own, func() { _ = taken.Close() }, nil // it was only read
}

// take opens <dir>/<base>.json and removes it; fs.ErrNotExist when there is none. It
// is moved first: what is removed must be what was opened, and only one pull takes it.
func take(dir, base string) (*os.File, error) {
	own := filepath.Join(dir, base+"-"+rand.Text())
	if err := os.Rename(filepath.Join(dir, base+".json"), own); err != nil {
		return nil, err
	}
	file, err := os.Open(own)
	if removeErr := os.Remove(own); err == nil && removeErr != nil {
		return nil, errors.Join(removeErr, file.Close())
	}
	return file, err
}
