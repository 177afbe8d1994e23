// Package shim is containerd-shim-husk-v2: a shim v2 that stock CRI-O starts for a
// handler with runtime_type = "vm" and runtime_pull_image = true. It runs a pod's
// containers on the host with an ordinary OCI runtime, from layers that it pulls
// inside the pod's sandbox.
//
// One binary is four processes. `start` and `delete` are CRI-O's calls. The keeper
// (package keeper) holds CRI-O's connections and outlives the shim. The shim, in a
// mount namespace of its own, is containerd's runc task service with a layer around
// it that makes root file systems. A child for each pull is package sandbox.
package shim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"syscall"

	"github.com/containerd/containerd/namespaces"
	containerdshim "github.com/containerd/containerd/runtime/v2/shim"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"

	"github.com/husk-cri/husk/internal/sandbox"
	"github.com/husk-cri/husk/internal/sandbox/layers"
	"github.com/husk-cri/husk/internal/shim/keeper"
	"github.com/husk-cri/husk/internal/shim/pod"
)

// daemonEnv is set, to the pod's ID, for the process that is a pod's shim. It is a
// variable and not an argument because containerd's framework owns the arguments.
const daemonEnv = "HUSK_SHIM_DAEMON"

// sweepCommand is for the operator: [Manager.Sweep].
const sweepCommand = "sweep"

// binaryName is what CRI-O makes of [Name].
const binaryName = "containerd-shim-husk-v2"

// helpText is for people. CRI-O starts and deletes pods by the arguments of shim v2.
const helpText = binaryName + ` is started by CRI-O, for the pods of a handler that names it (docs/store.md).

  features   what the OCI runtime of ` + DefaultConfigPath + ` can do, as JSON; CRI-O asks when it starts
  sweep      clean up after pods of this machine whose shim and keeper were killed
  --version
  --help
`

// Main runs whichever process the arguments and the environment ask for, and returns
// its exit status. Version is what --version prints.
func Main(ctx context.Context, args []string, version string, puller layers.Puller) int {
	err := run(ctx, args, version, puller)
	if err != nil {
		_, _ = fmt.Fprintf(os.Stderr, "%s: %v\n", Name, err) // there is nowhere else to say it
		return 1
	}
	return 0
}

func run(ctx context.Context, args []string, version string, puller layers.Puller) error {
	command := ""
	if len(args) > 1 {
		command = args[1]
	}
	switch {
	case command == "--version" || command == "-v": // CRI-O asks each time it starts
		_, err := fmt.Println(binaryName, version)
		return err
	case command == "--help" || command == "-h" || command == "help":
		_, err := fmt.Print(helpText)
		return err
	case (command == featuresCommand || command == sweepCommand) && len(args) > 2:
		return fmt.Errorf("%s takes no arguments\n%s", command, helpText)
	case command == featuresCommand:
		// CRI-O starts, and will ask for its containers: those whose shim is gone need
		// somebody who answers. What cannot be cleaned up is no reason not to answer.
		if os.Geteuid() == 0 {
			_ = Manager{}.Sweep(namespaces.WithNamespace(ctx, namespaces.Default))
		}
		return printFeatures(ctx, os.Stdout)
	case command == sweepCommand:
		return Manager{}.Sweep(namespaces.WithNamespace(ctx, namespaces.Default))
	case command == layers.ChildCommand:
		return layers.Child(ctx, os.Stdin, os.Stdout, puller)
	case command == keeper.Command:
		return runKeeper(ctx, args)
	case os.Getenv(daemonEnv) != "":
		return runDaemon(ctx)
	}
	// `start` and `delete` wait for the commands they run; the framework must not.
	containerdshim.RunManager(ctx, Manager{}, func(c *containerdshim.Config) { c.NoReaper = true })
	return nil
}

// keeperArgs is the command line of a keeper. The binary's name is not in it: who
// kills the shim by its name must not kill its keeper.
type keeperArgs struct {
	Pod       pod.Pod
	Namespace string
	Debug     bool
	// Orphan is set for a pod whose shim is gone.
	Orphan bool
}

const keeperArgCount = 6

func (k keeperArgs) encode() []string {
	debug, orphan := "", ""
	if k.Debug {
		debug = "-debug"
	}
	if k.Orphan {
		orphan = "orphan"
	}
	return []string{keeper.Command, keeper.Command, k.Pod.ID(), k.Namespace, debug, orphan}
}

func decodeKeeperArgs(args []string) (keeperArgs, error) {
	if len(args) != keeperArgCount {
		return keeperArgs{}, fmt.Errorf("a keeper has %d arguments, not %d", keeperArgCount, len(args))
	}
	p, err := pod.New("", args[2])
	if err != nil {
		return keeperArgs{}, err
	}
	return keeperArgs{Pod: p, Namespace: args[3], Debug: args[4] != "", Orphan: args[5] != ""}, nil
}

// shimCgroup is where keepers and shims run under systemd. In CRI-O's own cgroup
// systemd would kill them whenever it stops crio.service, whose KillMode is
// control-group; in a pod's, kubelet would, before CRI-O removes the pod.
const shimCgroup = "/husk"

func leaveService() error {
	_, err := os.Stat("/run/systemd/system") // sd_booted(3)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = sandbox.Join(shimCgroup, os.Getpid())
	return err
}

// setName makes ps and the kernel's log show what the process is: without it all
// are called "exe".
func setName(name string) error { return os.WriteFile("/proc/self/comm", []byte(name), 0) }

func runKeeper(ctx context.Context, args []string) error {
	k, err := decodeKeeperArgs(args)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	openLog(ctx)
	if err := setName(keeper.Command); err != nil {
		return err
	}
	if err := leaveService(); err != nil {
		return err
	}
	ctx = namespaces.WithNamespace(ctx, k.Namespace)
	if k.Orphan {
		return keeper.Keeper{Pod: k.Pod}.Run(ctx)
	}
	go sweepNow(ctx)
	shimArgs := []string{self, "-namespace", k.Namespace, "-id", k.Pod.ID(), "-address", ""}
	if k.Debug {
		logrus.SetLevel(logrus.DebugLevel)
		shimArgs = append(shimArgs, "-debug")
	}
	cmd := exec.Command("/proc/self/exe") //nolint:noctx // our own binary, and it may outlive the keeper
	cmd.Args = shimArgs
	cmd.Env = append(os.Environ(), daemonEnv+"="+k.Pod.ID())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: syscall.CLONE_NEWNS}
	return keeper.Keeper{Pod: k.Pod, Shim: cmd}.Run(ctx)
}

// sweepNow is here, and not in `start`, so that no pod's start waits for it. It leaves the
// cgroups alone: to look at all of them for each pod is dear.
func sweepNow(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()
	if err := (Manager{}).sweepPods(ctx); err != nil {
		log.G(ctx).WithError(err).Warn("clean up after pods that were killed")
	}
}
