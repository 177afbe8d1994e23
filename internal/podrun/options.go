package podrun

import (
	"io"
	"path/filepath"
	"strings"
	"syscall"

	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/husk-cri/husk/bundlegen"
	"github.com/husk-cri/husk/bundlegen/bundles"
	"github.com/husk-cri/husk/internal/crioconf"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
	"github.com/husk-cri/husk/pkg/registryauth"
)

// Options say what to run.
type Options struct {
	// Name of the container, and of the pod that it joins. Empty: a name of its own, and a
	// pod of its own.
	Name, Pod string
	// Runtime runs it.
	Runtime bundles.Runtime
	// Network is a CNI network, [NetworkHost] or [NetworkNone]. Empty: the default one, or
	// that of the pod it joins.
	Network string
	// CgroupParent holds the pod's cgroup. Empty: [DefaultCgroupParent].
	CgroupParent string
	// Image is the record of the image, and Pulled how it was pulled.
	Image  imageref.Record
	Pulled imageref.PulledReference
	// Credentials are for the pull of the layers and nothing else.
	Credentials registryauth.Credentials
	// Request is what the image's config is changed by.
	Request bundlegen.Request
	// Volumes are bind mounts.
	Volumes []rspec.Mount
	// ReadonlyRoot, Terminal and AutoRemove are as of the flags.
	ReadonlyRoot, Terminal, AutoRemove bool
	// IO is where the streams go.
	IO IO
	// Started is called with the container's ID once its process runs. Nil: nobody is.
	Started func(id string)
}

// IO connects a process to its user.
type IO struct {
	// Stdin is what the process reads. Nil: nothing.
	Stdin io.Reader
	// Stdout and Stderr are what it writes. Nil: only the log has it.
	Stdout, Stderr io.Writer
	// Signals are passed on. A second one that asks for the end kills.
	Signals <-chan syscall.Signal
	// Sizes are those of the user's terminal, as they change.
	Sizes <-chan Size
}

// Size is that of a terminal, in characters.
type Size struct{ Width, Height uint16 }

// isHusk says whether a runtime is Husk's shim, which pulls when asked, resolves names and
// runs processes of this machine.
func isHusk(r bundles.Runtime) bool {
	return crioconf.Handler{Path: r.Path}.ResolvesNames()
}

// check refuses what could never run, before anything is made.
func (o Options) check() error {
	for what, name := range map[string]string{"container": o.Name, "pod": o.Pod} {
		if strings.HasSuffix(name, sandboxSuffix) {
			return errdefs.Newf(errdefs.InvalidArgument, "name "+what+" "+name, "names that end in %q are those of pods' own containers", sandboxSuffix)
		}
	}
	if o.Network == NetworkNone && !isHusk(o.Runtime) {
		return errdefs.Newf(errdefs.Unsupported, "run with the network none",
			"runtime %s pulls the image from inside the pod, and needs a network for that", o.Runtime.Name)
	}
	if !filepath.IsAbs(o.Runtime.Path) {
		return errdefs.Newf(errdefs.InvalidArgument, "run with runtime "+o.Runtime.Name, "%q is not an absolute path", o.Runtime.Path)
	}
	return nil
}
