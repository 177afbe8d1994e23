package shim

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/ttrpc"
	. "github.com/onsi/gomega"
	"google.golang.org/grpc/status"

	"github.com/husk-cri/husk/internal/sandbox/layers"
	shimv1 "github.com/husk-cri/husk/pkg/api/shim/v1"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/layerpull"
)

const (
	slowImage = "r.example/slow@sha256:" + digestHex
	toldImage = "r.example/told@sha256:" + digestHex
)

// special pulls the images that are none: a slow one never comes, and a told one says
// what its child was given.
func special(ctx context.Context, req layers.PullRequest, progress func(layerpull.Progress)) error {
	switch req.Reference {
	case slowImage:
		progress(layerpull.Progress{Layers: 7, Bytes: 100, BytesDone: 1})
		select { // with a timer, or Go's runtime takes it for a deadlock
		case <-ctx.Done():
		case <-time.After(time.Hour):
		}
		return ctx.Err()
	case toldImage:
		return errdefs.Newf(errdefs.KeyUnavailable, "pull", "proxy %s, credentials %s, environment %s",
			os.Getenv("HTTPS_PROXY"), req.Credentials.Username, os.Environ())
	}
	return nil
}

// images is a connection of its own to the image service.
func (e *e2e) images() shimv1.ImagesClient {
	e.t.Helper()
	conn, err := (&net.Dialer{}).DialContext(e.t.Context(), "unix", e.pod.Socket())
	e.g.Expect(err).NotTo(HaveOccurred())
	client := ttrpc.NewClient(conn)
	e.t.Cleanup(func() { _ = client.Close() })
	return shimv1.NewImagesClient(client)
}

// slowPull opens a pull that does not end, and returns how it ends.
func (e *e2e) slowPull() <-chan error {
	e.t.Helper()
	stream, err := e.images().PullImage(e.t.Context(), &shimv1.PullImageRequest{Reference: slowImage})
	e.g.Expect(err).NotTo(HaveOccurred())
	resp, err := stream.Recv()
	e.g.Expect(err).NotTo(HaveOccurred())
	e.g.Expect(resp.Progress).To(And(HaveField("Layers", uint32(7)), HaveField("BytesDone", uint64(1))))
	e.g.Expect(e.pullGroups()).NotTo(BeEmpty(), "it is in the pod's cgroup")
	done := make(chan error, 1)
	go func() {
		_, err := stream.Recv()
		done <- err
	}()
	return done
}

// pullGroups are the cgroups of the pod's pulls.
func (e *e2e) pullGroups() []string {
	e.t.Helper()
	var groups []string
	for _, pattern := range []string{"/sys/fs/cgroup/*/", "/sys/fs/cgroup/"} {
		found, err := filepath.Glob(pattern + "husk-e2e-" + e.sandboxID[:8] + "/husk-*-pull-*")
		e.g.Expect(err).NotTo(HaveOccurred())
		groups = append(groups, found...)
	}
	return groups
}

func TestPullImageOnTheRealBinary(t *testing.T) {
	t.Parallel()
	e := newE2E(t)
	id := e.runPod()
	g := e.g
	stream, err := e.images().PullImage(t.Context(), &shimv1.PullImageRequest{
		Reference: toldImage, Credentials: &shimv1.Credentials{Username: "alice", Password: "s3cret"},
	})
	g.Expect(err).NotTo(HaveOccurred())
	_, err = stream.Recv()
	g.Expect(kindOf(err)).To(Equal("key-unavailable"), "%v", err)
	g.Expect(err).To(MatchError(And(
		ContainSubstring("proxy http://proxy.example:1,"), ContainSubstring("credentials alice,"), Not(ContainSubstring("SOME_SECRET")))))

	// The image that the container is on is that of its record.
	record, err := e.pod.Get(id)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(record.Image).To(HaveField("Reference", "r.example/app@sha256:"+digestHex))

	// The sandbox ends: the pull does too, and nothing of it stays.
	done := e.slowPull()
	ctx := context.WithoutCancel(t.Context())
	e.remove(id)
	_, err = e.client.Kill(ctx, &taskapi.KillRequest{ID: e.sandboxID, Signal: 9})
	g.Expect(err).NotTo(HaveOccurred())
	g.Eventually(done, 5*time.Second).Should(Receive(&err))
	g.Expect(kindOf(err)).To(Equal("unavailable"), "%v", err)
	g.Eventually(e.pullGroups, 5*time.Second).Should(BeEmpty())
	_, err = e.client.Delete(ctx, &taskapi.DeleteRequest{ID: e.sandboxID})
	g.Expect(err).NotTo(HaveOccurred())
	if _, err = e.client.Shutdown(ctx, &taskapi.ShutdownRequest{ID: e.sandboxID}); !errors.Is(err, ttrpc.ErrClosed) {
		g.Expect(err).NotTo(HaveOccurred())
	}
	e.gone()
}

func TestPullImageWhenTheShimIsKilled(t *testing.T) {
	t.Parallel()
	e := newE2E(t)
	id := e.runPod()
	done := e.slowPull()
	e.killShim()
	var err error
	e.g.Eventually(done, 10*time.Second).Should(Receive(&err))
	e.g.Expect(kindOf(err)).To(Equal("unavailable"), "%v", err)
	e.g.Expect(status.Convert(err).Message()).To(And(ContainSubstring(slowImage), ContainSubstring("was killed")))
	e.g.Expect(e.pullGroups()).To(BeEmpty())
	e.remove(id)
	e.remove(e.sandboxID)
	e.gone()
}

// A shim that is asked to end ends its pulls first.
func TestPullImageWhenTheShimIsTerminated(t *testing.T) {
	t.Parallel()
	e := newE2E(t)
	id := e.runPod()
	done := e.slowPull()
	for _, pid := range e.processes("-id " + e.sandboxID) {
		process, err := os.FindProcess(pid)
		e.g.Expect(err).NotTo(HaveOccurred())
		e.g.Expect(process.Signal(os.Interrupt)).To(Succeed())
	}
	var err error
	e.g.Eventually(done, 10*time.Second).Should(Receive(&err))
	e.g.Expect(kindOf(err)).To(Equal("unavailable"), "%v", err)
	e.g.Expect(e.pullGroups()).To(BeEmpty())
	e.g.Eventually(func() error {
		e.connect()
		_, err := e.client.State(t.Context(), &taskapi.StateRequest{ID: id})
		return err
	}, 10*time.Second).Should(Succeed())
	e.remove(id)
	e.remove(e.sandboxID)
	e.gone()
}
