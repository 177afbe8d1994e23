package manifestonly_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/registryauth"
)

// tower counts pulls and holds them until they are released.
type tower struct {
	mu      sync.Mutex
	started int
	ended   chan error // the context's error of each pull that was cut off
	begun   chan struct{}
	release chan struct{}
}

func newTower() *tower {
	return &tower{ended: make(chan error, 16), begun: make(chan struct{}, 16), release: make(chan struct{})}
}

func (w *tower) pull(ctx context.Context) (manifestonly.Result, error) {
	w.mu.Lock()
	w.started++
	n := w.started
	w.mu.Unlock()
	w.begun <- struct{}{}
	select {
	case <-w.release:
		return manifestonly.Result{Stats: manifestonly.Stats{Requests: n}}, nil
	case <-ctx.Done():
		w.ended <- ctx.Err()
		return manifestonly.Result{}, ctx.Err()
	}
}

func (w *tower) pulls() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.started
}

type landing struct {
	result manifestonly.Result
	err    error
}

func depart(ctx context.Context, f *manifestonly.Flights, key manifestonly.FlightKey, w *tower) chan landing {
	done := make(chan landing, 1)
	go func() {
		result, err := f.Do(ctx, key, w.pull)
		done <- landing{result, err}
	}()
	return done
}

// waiting blocks until n goroutines wait inside Do: there is no other trace of a
// caller that joined.
func waiting(g Gomega, n int) {
	g.Eventually(func() int {
		buf := make([]byte, 1<<20)
		return strings.Count(string(buf[:runtime.Stack(buf, true)]), "manifestonly.(*Flights).Do(")
	}).WithTimeout(10 * time.Second).Should(BeNumerically(">=", n))
}

//nolint:paralleltest // counts the goroutines of the process
func TestFlightsShare(t *testing.T) {
	g := NewWithT(t)
	before := runtime.NumGoroutine()
	var f manifestonly.Flights
	w := newTower()
	key := f.Key(manifestonly.Request{Name: name}, "host")
	callers := make([]chan landing, 0, 8)
	for range 8 {
		callers = append(callers, depart(t.Context(), &f, key, w))
	}
	waiting(g, 8)
	g.Expect(w.pulls()).To(Equal(1))
	close(w.release)
	paid := 0
	for _, c := range callers {
		l := <-c
		g.Expect(l.err).NotTo(HaveOccurred())
		paid += l.result.Stats.Requests
	}
	g.Expect(paid).To(Equal(1), "the cost is counted once")
	_, err := f.Do(t.Context(), key, w.pull)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(w.pulls()).To(Equal(2), "one that comes later asks anew")
	g.Eventually(runtime.NumGoroutine).Should(BeNumerically("<=", before))
}

//nolint:paralleltest // counts the goroutines of the process
func TestFlightsCancellation(t *testing.T) {
	g := NewWithT(t)
	before := runtime.NumGoroutine()
	var f manifestonly.Flights
	w := newTower()
	key := f.Key(manifestonly.Request{Name: name}, "host")
	ctx1, leave1 := context.WithCancel(t.Context())
	ctx2, leave2 := context.WithCancel(t.Context())
	first := depart(ctx1, &f, key, w)
	<-w.begun
	second := depart(ctx2, &f, key, w)
	waiting(g, 2)

	leave1() // the one that started it
	g.Expect((<-first).err).To(MatchError(context.Canceled))
	g.Consistently(w.ended, "50ms").ShouldNot(Receive(), "the other one still waits")
	leave2()
	g.Expect((<-second).err).To(MatchError(context.Canceled))
	g.Eventually(w.ended).Should(Receive(MatchError(context.Canceled)), "nobody waits any more")

	third := depart(t.Context(), &f, key, w)
	<-w.begun
	g.Expect(w.pulls()).To(Equal(2), "a flight that was given up is not joined")
	close(w.release)
	g.Expect((<-third).err).NotTo(HaveOccurred())

	gone, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := f.Do(gone, key, w.pull)
	g.Expect(err).To(MatchError(context.Canceled))
	g.Expect(w.pulls()).To(Equal(2))
	g.Eventually(runtime.NumGoroutine).Should(BeNumerically("<=", before))
}

func TestFlightsShareErrors(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	var f manifestonly.Flights
	failed := errors.New("no")
	_, err := f.Do(t.Context(), f.Key(manifestonly.Request{}, ""), func(context.Context) (manifestonly.Result, error) {
		return manifestonly.Result{}, failed
	})
	g.Expect(err).To(BeIdenticalTo(failed))
}

// A pull that panics lands like any other.
func TestFlightsPanic(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	var f manifestonly.Flights
	key := f.Key(manifestonly.Request{Name: name}, "")
	for range 2 { // the second time it is not joined
		_, err := f.Do(t.Context(), key, func(context.Context) (manifestonly.Result, error) { panic("a hostile index") })
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.Internal))
		g.Expect(err).To(MatchError(And(ContainSubstring("a hostile index"), ContainSubstring("flights_test.go"))))
	}
}

// Whatever differs, nothing is shared: least of all between credentials.
func TestFlightKeys(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	var f, another manifestonly.Flights
	base := manifestonly.Request{
		Name: "app:v1", Namespace: "ns", Platform: imgspec.Platform{OS: "linux", Architecture: "arm", Variant: "v7"},
		Credentials: registryauth.Credentials{Username: "alice", Password: "hunter2"},
	}
	with := func(edit func(*manifestonly.Request)) manifestonly.Request {
		req := base
		edit(&req)
		return req
	}
	type asked struct {
		req   manifestonly.Request
		place string
	}
	different := []asked{
		{base, "host"},
		{base, "/proc/1/ns/net"},
		{with(func(r *manifestonly.Request) { r.Name = "docker.io/library/app:v1" }), "host"},
		{with(func(r *manifestonly.Request) { r.Namespace = "other" }), "host"},
		{with(func(r *manifestonly.Request) { r.Platform.Variant = "v6" }), "host"},
		{with(func(r *manifestonly.Request) { r.Platform.OSFeatures = []string{"x"} }), "host"},
		{with(func(r *manifestonly.Request) { r.Limits.MaxLayers = 1 }), "host"},
		{with(func(r *manifestonly.Request) { r.Limits.MaxImageBytes = 1 }), "host"},
		{with(func(r *manifestonly.Request) { r.Credentials = registryauth.Credentials{} }), "host"},
		{with(func(r *manifestonly.Request) { r.Credentials.Password = "hunter3" }), "host"},
		{with(func(r *manifestonly.Request) { r.Credentials.Username, r.Credentials.Password = "aliceh", "unter2" }), "host"},
		{with(func(r *manifestonly.Request) { r.Credentials.Auth = "YTpi" }), "host"},
		{with(func(r *manifestonly.Request) { r.Credentials.IdentityToken = "t" }), "host"},
		{with(func(r *manifestonly.Request) { r.Credentials.RegistryToken = "t" }), "host"},
	}
	seen := map[manifestonly.FlightKey]int{}
	for i, a := range different {
		key := f.Key(a.req, a.place)
		g.Expect(seen).NotTo(HaveKey(key), "request %d", i)
		seen[key] = i
		g.Expect(f.Key(a.req, a.place)).To(Equal(key), "the same again")
		g.Expect(another.Key(a.req, a.place)).NotTo(Equal(key), "nobody else can compute it")
		g.Expect(fmt.Sprintf("%v %+v %#v %s %x", key, key, key, key, key)).To(Equal(strings.TrimSuffix(strings.Repeat("flight key ", 5), " ")))
	}
}
