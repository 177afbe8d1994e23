package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	remote "k8s.io/cri-client/pkg"

	"github.com/husk-cri/husk/test/node/internal/build"
	"github.com/husk-cri/husk/test/node/internal/images"
)

const (
	// startLimit is how long a daemon may take until it answers.
	startLimit = 60 * time.Second
	// callLimit is the time limit of one CRI call of testnode's own.
	callLimit = 30 * time.Second
)

// Names of the node's daemons.
const (
	daemonCRIO         = "crio"
	daemonRegistry     = "registry"
	daemonAuthRegistry = "auth-registry"
)

// defaultSocket is the file name of CRI-O's socket: the front takes the usual one.
const defaultSocket = "crio-backend.sock"

var validName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,30}$`)

// Options say what node to make. All but Dir may be zero.
type Options struct {
	Dir        string         // a folder that is empty or not there; short (unix sockets)
	Name       string         // default: the folder's name
	Bin        build.Binaries // CRI-O, pinns, pause
	Shim       Shim           // zero: no handler husk
	Auth       string         // user:password of a second registry; empty: no second registry
	SocketName string         // of CRI-O; default crio-backend.sock
	LogLevel   string         // of CRI-O; default info: its debug log shows passwords
	DropIns    []string       // files for crio.conf.d
}

// Up makes a node and starts it. When that fails nothing is left of it but the log folder.
func Up(ctx context.Context, o Options) (_ *Node, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("a node needs root")
	}
	n, err := prepare(o)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("%w (logs in %s)", err, n.LogDir), n.dismantle(context.WithoutCancel(ctx), n.outside(), true))
		}
	}()
	if n.Network, err = makeNetwork(ctx); err != nil {
		return nil, err
	}
	n.CgroupParent = "/" + n.Network.Name
	if err := n.planRegistries(ctx, o.Auth); err != nil {
		return nil, err
	}
	if err := errors.Join(n.writeConfig(o.DropIns), n.save()); err != nil {
		return nil, err
	}
	if err := n.StartRegistry(ctx); err != nil {
		return nil, err
	}
	if err := n.pushImages(ctx); err != nil {
		return nil, err
	}
	if err := n.StartCRIO(ctx); err != nil {
		return nil, err
	}
	return n, n.pullPause(ctx)
}

// prepare checks the options and makes the folder.
func prepare(o Options) (*Node, error) {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("node folder: %w", err)
	}
	if len(dir) > maxDir {
		return nil, fmt.Errorf("the path %s is longer than %d bytes: the unix sockets below it would not fit", dir, maxDir)
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("node folder: %w", err)
	}
	if len(entries) > 0 {
		return nil, fmt.Errorf("the folder %s is not empty", dir)
	}
	n := &Node{Dir: dir, Name: or(o.Name, filepath.Base(dir)), LogLevel: or(o.LogLevel, "info"), Shim: o.Shim}
	if !validName.MatchString(n.Name) {
		return nil, fmt.Errorf("node name %q: want small letters, digits and dashes", n.Name)
	}
	n.Bin.Binaries = o.Bin
	for name, path := range map[string]*string{"conmon": &n.Bin.Conmon, "runc": &n.Bin.Runc, "docker-registry": &n.Bin.Registry} {
		if *path, err = exec.LookPath(name); err != nil {
			return nil, fmt.Errorf("find %s (apt package): %w", name, err)
		}
	}
	n.plan(or(o.SocketName, defaultSocket))
	return n, n.makeFolders()
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func (n *Node) planRegistries(ctx context.Context, auth string) (err error) {
	n.Registry, err = n.planRegistry(ctx, daemonRegistry, registryPort)
	if err != nil || auth == "" {
		return err
	}
	r, err := n.planRegistry(ctx, daemonAuthRegistry, registryPort+1)
	if err != nil {
		return err
	}
	r.Htpasswd = n.path("conf", "htpasswd")
	n.AuthRegistry = &r
	return writeHtpasswd(r.Htpasswd, auth)
}

func (n *Node) planRegistry(ctx context.Context, name string, port int) (Registry, error) {
	addr, err := n.Network.listenAddress(ctx, port)
	return Registry{
		Address: addr, Config: n.path("conf", name+".yml"), Data: n.path(name), AccessLog: n.path("log", name+".out"),
	}, err
}

// StartRegistry starts the registries and waits until they answer. docker-registry's standard output is its access
// log and nothing else.
func (n *Node) StartRegistry(ctx context.Context) error {
	registries := map[string]*Registry{daemonRegistry: &n.Registry}
	if n.AuthRegistry != nil {
		registries[daemonAuthRegistry] = n.AuthRegistry
	}
	for name, r := range registries {
		if err := n.Start(name, nil, n.Bin.Registry, "serve", r.Config); err != nil {
			return err
		}
		if err := n.await(ctx, name, func(ctx context.Context) error { return answers(ctx, r.Address) }); err != nil {
			return err
		}
	}
	return nil
}

// StopRegistry stops the registries; what they hold stays.
func (n *Node) StopRegistry() error {
	return errors.Join(n.Stop(daemonRegistry, unix.SIGTERM), n.Stop(daemonAuthRegistry, unix.SIGTERM))
}

// answers asks for a path that no test asks for, and takes any answer.
func answers(ctx context.Context, address string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/testnode-ready", nil)
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // no proxy: it is our own address
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// StartCRIO starts CRI-O and waits until it answers.
func (n *Node) StartCRIO(ctx context.Context) error {
	if err := n.Start(daemonCRIO, n.crioEnv(), n.Bin.CRIO, "--config", n.CRIO.Config, "--config-dir", n.CRIO.ConfigDir); err != nil {
		return err
	}
	return n.await(ctx, daemonCRIO, n.crioReady)
}

// crioReady asks CRI-O for its conditions: it answers calls before it has read the network's configuration.
func (n *Node) crioReady(ctx context.Context) error {
	r, err := remote.NewRemoteRuntimeService("unix://"+n.CRIO.Socket, callLimit, nil, nil)
	if err != nil {
		return err
	}
	s, err := r.Status(ctx, false)
	if err != nil {
		return err
	}
	for _, c := range s.GetStatus().GetConditions() {
		if !c.GetStatus() {
			return fmt.Errorf("%s is false: %s %s", c.GetType(), c.GetReason(), c.GetMessage())
		}
	}
	return nil
}

// StopCRIO stops CRI-O with sig; the pods keep running.
func (n *Node) StopCRIO(sig unix.Signal) error {
	return n.Stop(daemonCRIO, sig)
}

// await waits until ready succeeds, for as long as the daemon lives.
func (n *Node) await(ctx context.Context, name string, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		if !n.Daemons[name].Alive() {
			return fmt.Errorf("%s ended: %s", name, lastLines(n.path("log", name+".log")))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w", name, err)
		case <-time.After(poll):
		}
	}
}

// lastLines is the end of a log, for an error message.
func lastLines(path string) string {
	const lines = 5
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// pushImages puts the images that every node has into its registry.
func (n *Node) pushImages(ctx context.Context) error {
	pause, err := images.Pause(n.Bin.Pause)
	if err != nil {
		return err
	}
	busybox, err := images.Busybox(ctx)
	if err != nil {
		return err
	}
	return errors.Join(
		images.Push(ctx, n.Registry.Address+"/pause:latest", pause),
		images.Push(ctx, n.Registry.Address+"/busybox:latest", busybox),
	)
}

// pullPause pulls the pause image now, so that a test's access log shows only the test's own requests.
func (n *Node) pullPause(ctx context.Context) error {
	s, err := remote.NewRemoteImageService("unix://"+n.CRIO.Socket, callLimit, nil, nil)
	if err != nil {
		return fmt.Errorf("connect to crio: %w", err)
	}
	if _, err := s.PullImage(ctx, &runtimeapi.ImageSpec{Image: n.Registry.Address + "/pause:latest"}, nil, nil); err != nil {
		return fmt.Errorf("pull pause image: %w", err)
	}
	return nil
}
