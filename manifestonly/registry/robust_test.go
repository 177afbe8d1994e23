package registry_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/manifestonly/registry"
	"github.com/husk-cri/husk/manifestonly/storetest"
	"github.com/husk-cri/husk/pkg/errdefs"
)

const shortPause = 4 * time.Millisecond

// tryPull pulls with short pauses between attempts.
func (n *node) tryPull(ctx context.Context, name string) (manifestonly.Result, error) {
	return manifestonly.Pull(ctx, manifestonly.Request{Name: name}, registry.NewImpatient(n.config, shortPause), &storetest.Memory{})
}

func TestTroubleThatPasses(t *testing.T) {
	t.Parallel()
	anyManifest, anyBlob := fakeregistry.Manifest(""), fakeregistry.Blob("")
	few := registry.MaxAttempts - 1
	for title, c := range map[string]struct {
		match fakeregistry.Match
		fault fakeregistry.Fault
	}{
		"500 at the manifest":     {anyManifest, fakeregistry.Times(few, fakeregistry.Status(500, "oops"))},
		"503 at the ping":         {fakeregistry.Ping, fakeregistry.Times(few, fakeregistry.Status(503, ""))},
		"502 at the config":       {anyBlob, fakeregistry.Times(few, fakeregistry.Status(502, ""))},
		"502 at the token":        {fakeregistry.Token, fakeregistry.Times(few, fakeregistry.Status(502, ""))},
		"dropped at the manifest": {anyManifest, fakeregistry.Times(few, fakeregistry.Drop())},
		"dropped at the config":   {anyBlob, fakeregistry.Times(few, fakeregistry.Drop())},
		"headers cut":             {anyManifest, fakeregistry.Times(few, fakeregistry.CutHeaders())},
		"manifest cut":            {anyManifest, fakeregistry.Times(few, fakeregistry.CutBody(20))},
		"config cut":              {anyBlob, fakeregistry.Times(2, fakeregistry.CutBody(20))},
		"429":                     {anyManifest, fakeregistry.Times(4, fakeregistry.TooMany("0"))},
		"429 at the config":       {anyBlob, fakeregistry.Times(4, fakeregistry.TooMany("0"))},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			r := fakeregistry.New(t, fakeregistry.Options{Bearer: true, Public: []string{"app"}, Username: "u", Password: "p"})
			p := r.Push(t, "app", "v1", fakeregistry.Image{})
			r.On(c.match, c.fault)
			result, err := newNode(t).tryPull(t.Context(), p.Reference)
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(result.Stats.Requests).To(Equal(len(r.Requests())), "the failed ones are counted")
		})
	}
}

func TestTroubleThatStays(t *testing.T) {
	t.Parallel()
	anyManifest := fakeregistry.Manifest("")
	for title, c := range map[string]struct {
		fault fakeregistry.Fault
		tries int
		want  errdefs.Kind
	}{
		"500": {fakeregistry.Status(500, ""), registry.MaxAttempts, errdefs.RegistryUnavailable},
		// net/http itself asks once more when a connection that it used before breaks.
		"dropped":         {fakeregistry.Drop(), 2 * registry.MaxAttempts, errdefs.RegistryUnavailable},
		"404":             {fakeregistry.Status(404, ""), 1, errdefs.NotFound},
		"418":             {fakeregistry.Status(418, "teapot"), 1, errdefs.RegistryUnavailable},
		"denied":          {fakeregistry.Echo(403), 1, errdefs.Unauthorized},
		"another content": {fakeregistry.Corrupt(), 1, errdefs.DigestMismatch},
		// By containers/image itself; none of ours on top of its five.
		"429": {fakeregistry.TooMany("0"), 5, errdefs.RegistryUnavailable},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			r := fakeregistry.New(t, fakeregistry.Options{})
			p := r.Push(t, "app", "v1", fakeregistry.Image{})
			r.On(anyManifest, c.fault)
			_, err := newNode(t).tryPull(t.Context(), p.Repository+"@"+p.Digest.String())
			g.Expect(errdefs.KindOf(err)).To(Equal(c.want), "%v", err)
			g.Expect(r.Count("GET", "/manifests/")).To(Equal(c.tries))
		})
	}
}

func TestPolicyIsNotAskedTwice(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := fakeregistry.New(t, fakeregistry.Options{})
	p := r.Push(t, "app", "v1", fakeregistry.Image{})
	n := newNode(t)
	n.write(t, "policy.json", `{"default":[{"type":"reject"}]}`)
	_, err := n.tryPull(t.Context(), p.Reference)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.PolicyRefused), "%v", err)
	g.Expect(r.Requests()).To(HaveLen(2), "ping and manifest")
}

// A registry that says when to come back is no registry that hangs, and the
// caller's deadline ends the wait.
func TestRetryAfter(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := fakeregistry.New(t, fakeregistry.Options{})
	p := r.Push(t, "app", "v1", fakeregistry.Image{})
	n := newNode(t)
	n.config.ProgressTimeout = 600 * time.Millisecond
	r.On(fakeregistry.Manifest(""), fakeregistry.Times(1, fakeregistry.TooMany("1")))
	_, err := n.tryPull(t.Context(), p.Reference)
	g.Expect(err).NotTo(HaveOccurred())

	r.On(fakeregistry.Manifest(""), fakeregistry.TooMany("3600"))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err = n.tryPull(ctx, p.Reference)
	g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.DeadlineExceeded), "%v", err)
}

// A registry that stops, or that sends just enough not to look like it, is cut
// off without any deadline of the caller's.
func TestNoProgress(t *testing.T) {
	t.Parallel()
	const limit = 150 * time.Millisecond
	big := fakeregistry.Image{Edit: nil}
	big.Config.Config.Labels = map[string]string{"big": strings.Repeat("x", 64<<10)}
	for title, c := range map[string]struct {
		match fakeregistry.Match
		fault fakeregistry.Fault
	}{
		"hangs at the ping":     {fakeregistry.Any, fakeregistry.Hang()},
		"hangs at the manifest": {fakeregistry.Manifest(""), fakeregistry.Hang()},
		"hangs at the config":   {fakeregistry.Blob(""), fakeregistry.Hang()},
		"drips the manifest":    {fakeregistry.Manifest(""), fakeregistry.Drip(5 * time.Millisecond)},
		"drips the config":      {fakeregistry.Blob(""), fakeregistry.Drip(5 * time.Millisecond)},
		"drips an error":        {fakeregistry.Manifest(""), dripError(5 * time.Millisecond)},
	} {
		for secured, ca := range map[string]*fakeregistry.CA{"": nil, ", by TLS": fakeregistry.NewCA(t)} {
			t.Run(title+secured, func(t *testing.T) {
				t.Parallel()
				g := NewWithT(t)
				r := fakeregistry.New(t, fakeregistry.Options{CA: ca})
				p := r.Push(t, "app", "v1", big)
				r.On(c.match, c.fault)
				n := newNode(t)
				n.config.ProgressTimeout = limit
				_, err := n.tryPull(t.Context(), p.Reference)
				g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.RegistryUnavailable), "%v", err)
				g.Expect(err).To(MatchError(And(ContainSubstring("no progress for 150ms"), ContainSubstring(p.Reference))))
			})
		}
	}
}

// dripError sends an error body without an end, a byte at a time.
func dripError(pause time.Duration) fakeregistry.Fault {
	return func(w http.ResponseWriter, req *http.Request, _ *fakeregistry.Registry) {
		w.WriteHeader(http.StatusForbidden)
		tick := time.NewTicker(pause)
		defer tick.Stop()
		for {
			select {
			case <-req.Context().Done():
				return
			case <-tick.C:
				_, _ = w.Write([]byte(" "))
				_ = http.NewResponseController(w).Flush()
			}
		}
	}
}

// What is slow but gets on is let be.
func TestSlowIsNotStuck(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := fakeregistry.New(t, fakeregistry.Options{})
	image := fakeregistry.Image{}
	image.Config.Config.Labels = map[string]string{"big": strings.Repeat("x", 16<<10)}
	p := r.Push(t, "app", "v1", image)
	r.On(fakeregistry.Blob(""), trickle(p.Config, 1<<10, 50*time.Millisecond))
	n := newNode(t)
	n.config.ProgressTimeout = 400 * time.Millisecond
	began := time.Now()
	_, err := n.tryPull(t.Context(), p.Reference)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(time.Since(began)).To(BeNumerically(">", n.config.ProgressTimeout), "it took longer than the limit in all")
}

// trickle sends a body in chunks with pauses.
func trickle(body []byte, chunk int, pause time.Duration) fakeregistry.Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ *fakeregistry.Registry) {
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		tick := time.NewTicker(pause)
		defer tick.Stop()
		for at := 0; at < len(body); at += chunk {
			_, _ = w.Write(body[at:min(at+chunk, len(body))])
			_ = http.NewResponseController(w).Flush()
			<-tick.C
		}
	}
}

// containers/image reads the body of an error without a limit, gzip unpacked. The
// guard stops both kinds of flood; the peak of memory is measured.
//
//nolint:paralleltest // measures the memory of the process
func TestFloods(t *testing.T) {
	for title, c := range map[string]struct {
		fault fakeregistry.Fault
		says  []string
	}{
		// Which limit stops it first is up to the garbage collector.
		"endless error": {fakeregistry.Big(http.StatusForbidden, "application/json", 100<<30), []string{fmt.Sprint(registry.MaxStepBytes), fmt.Sprint(registry.MaxHeapGrowth)}},
		"gzip bomb":     {bomb(t), []string{fmt.Sprint(registry.MaxHeapGrowth)}},
	} {
		t.Run(title, func(t *testing.T) { //nolint:paralleltest // as above
			g := NewWithT(t)
			r := fakeregistry.New(t, fakeregistry.Options{})
			p := r.Push(t, "app", "v1", fakeregistry.Image{})
			r.On(fakeregistry.Manifest(""), c.fault)
			_, err := newNode(t).tryPull(t.Context(), p.Reference)
			g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.TooLarge), "%v", err)
			g.Expect(slices.ContainsFunc(c.says, func(s string) bool { return strings.Contains(err.Error(), s) })).To(BeTrue(), "%v", err)
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			t.Logf("memory from the system: %d MiB", m.Sys>>20)
			g.Expect(r.Count("GET", "/manifests/")).To(Equal(1), "not tried again")
		})
	}
}

// bomb answers with an error whose body is 16 GiB of spaces, packed.
func bomb(t *testing.T) fakeregistry.Fault {
	t.Helper()
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	_, err := w.Write(bytes.Repeat([]byte(" "), 32<<20))
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	NewWithT(t).Expect(w.Close()).To(Succeed())
	member := packed.Bytes()
	return func(w http.ResponseWriter, req *http.Request, _ *fakeregistry.Registry) {
		w.Header().Set("Content-Encoding", "gzip")
		w.WriteHeader(http.StatusForbidden)
		for range 512 { // gzip members one after the other are one stream
			if _, err := w.Write(member); err != nil || req.Context().Err() != nil {
				return
			}
		}
	}
}

// A pull that is given up ends at once and leaves nothing running, whatever it was
// doing.
//
//nolint:paralleltest // counts the goroutines of the process
func TestCancellationLeavesNothing(t *testing.T) {
	for title, c := range map[string]struct {
		match fakeregistry.Match
		fault func(*fakeregistry.Gate) fakeregistry.Fault
	}{
		"at the ping":     {fakeregistry.Any, (*fakeregistry.Gate).Fault},
		"at the manifest": {fakeregistry.Manifest(""), (*fakeregistry.Gate).Fault},
		"at the config":   {fakeregistry.Blob(""), (*fakeregistry.Gate).Fault},
	} {
		t.Run(title, func(t *testing.T) { //nolint:paralleltest // as above
			g := NewWithT(t)
			r := fakeregistry.New(t, fakeregistry.Options{})
			p := r.Push(t, "app", "v1", fakeregistry.Image{})
			gate := fakeregistry.NewGate()
			r.On(c.match, c.fault(gate))
			n := newNode(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan error, 1)
			go func() {
				_, err := n.tryPull(ctx, p.Reference)
				done <- err
			}()
			<-gate.Arrived()
			cancel()
			g.Eventually(done).WithTimeout(5 * time.Second).Should(Receive(WithTransform(errdefs.KindOf, Equal(errdefs.Canceled))))
			g.Eventually(running).Should(BeEmpty())
		})
	}
}

// running lists the goroutines that work for a pull.
func running() []string {
	buf := make([]byte, 1<<20)
	var found []string
	for _, stack := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(stack, "manifestonly/registry.(*") || strings.Contains(stack, "net/http.(*persistConn)") ||
			strings.Contains(stack, "containers/image") {
			found = append(found, stack)
		}
	}
	return found
}
