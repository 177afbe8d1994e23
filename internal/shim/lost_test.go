package shim

import (
	"context"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	. "github.com/onsi/gomega"
)

// immortalTasks do not die, and who waits for them waits for ever.
type immortalTasks struct{ *fakeTasks }

func (immortalTasks) Wait(context.Context, *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	select {}
}

func TestShutdownLeavesWhatDoesNotDie(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := newServiceRig(t, nil)
	_, err := r.Create(inNamespace(t), r.request(t, "lost", asSandbox))
	g.Expect(err).NotTo(HaveOccurred())
	r.TaskService = immortalTasks{r.inner}
	r.over = true
	ctx, cancel := context.WithTimeout(inNamespace(t), 20*time.Millisecond)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := r.Shutdown(ctx, &taskapi.ShutdownRequest{})
		done <- err
	}()
	g.Eventually(done, 5*time.Second).Should(Receive(BeNil()))
	g.Expect(r.pod.Get("lost")).To(HaveField("ID", "lost"), "its record stays for the keeper")
}
