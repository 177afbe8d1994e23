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
// 1.34.0 does. The file serves one pull: it is moved aside, so that no other pull
// uses it, and removed when the pull ends, however it ends.
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
	own.authFile = taken
	// The file holds a credential for which nobody has a use any more; one that
	// cannot be removed is in a directory that only root reads, and no pull takes it.
	return &own, func() { _ = os.Remove(taken) }, nil
}

// take moves <dir>/<base>.json to a name of its own below <dir>/in-use and returns
// that; fs.ErrNotExist when there is none.
func take(dir, base string) (string, error) {
	file := filepath.Join(dir, base+".json")
	if _, err := os.Lstat(file); err != nil {
		return "", err
	}
	inUse := filepath.Join(dir, "in-use")
	if err := os.MkdirAll(inUse, 0o700); err != nil {
		return "", errors.Join(fmt.Errorf("make a place for auth files in use: %w", err), os.Remove(file))
	}
	taken := filepath.Join(inUse, base+"-"+rand.Text()+".json")
	err := os.Rename(file, taken)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // not taken by another pull just now
		err = errors.Join(err, os.Remove(file))
	}
	return taken, err
}
