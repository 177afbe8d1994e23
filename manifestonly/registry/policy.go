package registry

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containers/image/v5/signature"
	"github.com/containers/image/v5/types"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// policy returns the signature policy for a namespace.
func (s *Source) policy(sys *types.SystemContext, namespace string) (*signature.PolicyContext, error) {
	if namespace != "" && s.config.PolicyDir != "" {
		if err := checkNamespace(namespace); err != nil {
			return nil, err
		}
		path := filepath.Join(s.config.PolicyDir, namespace+".json")
		switch _, err := os.Stat(path); {
		case err == nil:
			sys.SignaturePolicyPath = path
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
	}
	policy, err := signature.DefaultPolicy(sys)
	if err != nil {
		return nil, err
	}
	return signature.NewPolicyContext(policy)
}

// checkNamespace refuses a namespace that is no file name: one with a slash could
// choose any file of the node as its policy, or as its credentials.
func checkNamespace(namespace string) error {
	if filepath.Base(namespace) != namespace || namespace == ".." || namespace == "." {
		return errdefs.Newf(errdefs.InvalidArgument, "use the files of a namespace", "invalid namespace %q", namespace)
	}
	return nil
}
