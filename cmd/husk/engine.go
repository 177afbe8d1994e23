package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containers/image/v5/pkg/docker/config"
	"github.com/containers/image/v5/types"
	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"

	"github.com/husk-cri/husk/bundlegen/bundles"
	"github.com/husk-cri/husk/internal/podnet"
	"github.com/husk-cri/husk/internal/podrun"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
	"github.com/husk-cri/husk/pkg/registryauth"
)

// runState is where running pods keep their state: below the storage's runroot, so that two
// storages of one machine do not clean up each other's.
const runState = "husk-run"

// runner is what the commands about containers work with.
type runner struct {
	*node
	*podrun.Engine
}

// openRunner opens the storage, which need not be there if make is set, and cleans up after
// those that were killed.
func openRunner(c *cli.Context, make bool) (*runner, error) {
	n, err := readNode(c)
	if err != nil {
		return nil, err
	}
	if make {
		err = n.open()
	} else {
		err = n.look()
	}
	if err != nil {
		return nil, err
	}
	// ocicni logs what it returns as an error, too, and what is no error here: a network
	// that is taken down twice.
	logrus.SetOutput(io.Discard)
	store, err := bundles.Open(bundles.Options(n.StoreOptions()))
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, errdefs.New(errdefs.Internal, "find husk's own binary", err)
	}
	network := n.Crio.Network
	r := &runner{n, &podrun.Engine{
		Store:    store,
		Network:  podnet.Config{ConfDir: network.Dir, PluginDirs: network.PluginDirs, DefaultNetwork: network.DefaultNetwork},
		StateDir: filepath.Join(n.Crio.Storage.RunRoot, runState),
		Self:     self,
	}}
	if err := r.Sweep(c.Context); err != nil {
		// It is not what was asked for, and is tried again by the next command.
		_, _ = fmt.Fprintln(c.App.ErrWriter, "husk: clean up after a husk that was killed:", err)
	}
	return r, nil
}

// nodeCredentials are those that the user's or the node's auth.json has for an image.
func (n *node) nodeCredentials(ref imageref.Reference) (registryauth.Credentials, error) {
	auth, err := config.GetCredentialsForRef(&types.SystemContext{AuthFilePath: n.Crio.Image.GlobalAuthFile}, ref.Named())
	if err != nil {
		return registryauth.Credentials{}, errdefs.New(errdefs.InvalidArgument, "read the credentials for "+ref.String(), err)
	}
	return registryauth.Credentials{Username: auth.Username, Password: auth.Password, IdentityToken: auth.IdentityToken}, nil
}
