package shim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/pkg/shutdown"
	"github.com/containerd/containerd/plugin"
	"github.com/containerd/containerd/runtime/v2/runc/task"
	containerdshim "github.com/containerd/containerd/runtime/v2/shim"
	"github.com/containerd/containerd/sys/reaper"
	runc "github.com/containerd/go-runc"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/internal/sandbox/layers"
	"github.com/husk-cri/husk/internal/shim/keeper"
	"github.com/husk-cri/husk/internal/shim/pod"
	shimv1 "github.com/husk-cri/husk/pkg/api/shim/v1"
)

// processName is how ps shows a shim, as it shows those of containerd.
const processName = "containerd-shim"

// runDaemon is a pod's shim. It returns only on an error: the framework ends the
// process.
func runDaemon(ctx context.Context) error {
	p, err := pod.New("", os.Getenv(daemonEnv))
	if err != nil {
		return err
	}
	if err := os.Unsetenv(daemonEnv); err != nil { // not for the processes it starts
		return err
	}
	if err := setName(processName); err != nil {
		return err
	}
	// The mount namespace is a copy of the host's. As a slave it gets what kubelet
	// mounts later, and gives nothing back.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make the mount namespace a slave of the host's: %w", err)
	}
	for _, fd := range []int{keeper.TaskFD, keeper.PublicFD, keeper.AliveFD} {
		unix.CloseOnExec(fd)
	}
	// The credentials of pulls pass through this process.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid core dumps: %w", err)
	}
	openLog(ctx)
	// Not in the bundle: by the address file there the task service would remove the
	// pod's socket when it ends, and that is the keeper's.
	if err := os.Chdir("/"); err != nil {
		return err
	}
	plugin.Register(&plugin.Registration{
		Type:     plugin.TTRPCPlugin,
		ID:       "task",
		Requires: []plugin.Type{plugin.EventPlugin, plugin.InternalPlugin},
		InitFn:   func(ic *plugin.InitContext) (any, error) { return newTaskPlugin(ic, p) },
	})
	containerdshim.RunManager(ctx, Manager{}, func(c *containerdshim.Config) { c.NoSetupLogger = true })
	return nil
}

// taskPlugin registers the services on the framework's server.
type taskPlugin struct{ *service }

// RegisterTTRPC implements the framework's interface for services.
func (t taskPlugin) RegisterTTRPC(server *ttrpc.Server) error {
	taskapi.RegisterTaskService(server, t.service)
	shimv1.RegisterImagesService(server, imageService{t.service})
	return nil
}

// UnaryInterceptor implements the framework's interface for services that have one.
func (taskPlugin) UnaryInterceptor() ttrpc.UnaryServerInterceptor { return escapeTaskErrors }

func newTaskPlugin(ic *plugin.InitContext, p pod.Pod) (any, error) {
	publisher, err := ic.GetByID(plugin.EventPlugin, "publisher")
	if err != nil {
		return nil, err
	}
	down, err := ic.GetByID(plugin.InternalPlugin, "shutdown")
	if err != nil {
		return nil, err
	}
	sd, ok := down.(shutdown.Service)
	if !ok {
		return nil, fmt.Errorf("the framework's shutdown service is a %T", down)
	}
	closer, ok := publisher.(containerdshim.Publisher)
	if !ok {
		return nil, fmt.Errorf("the framework's publisher is a %T", publisher)
	}
	events := &eventSink{pod: p, framework: closer, waits: newWaits()}
	inner, err := task.NewTaskService(ic.Context, events, sd)
	if err != nil {
		return nil, err
	}
	runc.Monitor = runtimeMonitor{reaper.Default} // NewTaskService made it the reaper
	st := newStore(p)
	s := &service{
		TaskService: inner,
		pod:         p,
		store:       st,
		waits:       events.waits,
		puller:      layers.Runner{Monitor: reaper.Default, Environ: os.Environ()},
		containers:  map[string]*container{},
	}
	sd.RegisterCallback(s.end)
	go outlive(ic.Context, p)
	return taskPlugin{s}, nil
}

// end removes the pod's state as the shim ends. Containers that are left, because
// the shim was told to end by a signal, are the keeper's to clean up.
func end(p pod.Pod, st *store) error {
	err := st.close()
	left, listErr := p.List()
	if listErr != nil || len(left) > 0 {
		return errors.Join(err, listErr)
	}
	return errors.Join(err, p.Remove())
}

// outlive serves CRI-O in the keeper's place once the keeper is gone. Connections
// that the keeper held are lost; CRI-O makes new ones when it restarts.
func outlive(ctx context.Context, p pod.Pod) {
	alive := os.NewFile(keeper.AliveFD, "alive")
	if _, err := alive.Read(make([]byte, 1)); err == nil {
		return // nobody writes to it
	}
	listener, err := net.FileListener(os.NewFile(keeper.PublicFD, "shim.sock"))
	if err != nil {
		log.G(ctx).WithError(err).Error("the pod's keeper is gone and its socket cannot be served")
		return
	}
	log.G(ctx).Warn("the pod's keeper is gone: serving its socket")
	relay := keeper.Relay{Dial: func(ctx context.Context) (net.Conn, error) { return keeper.Dial(ctx, p) }}
	log.G(ctx).WithError(relay.Serve(ctx, listener)).Error("the pod's socket failed")
}
