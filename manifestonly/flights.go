package manifestonly

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"runtime/debug"
	"strconv"
	"sync"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// Flights lets pulls that are the same in everything share one. The zero value is
// ready. It keeps nothing of a pull that has ended.
type Flights struct {
	mu      sync.Mutex
	secret  []byte // made on first use
	flights map[FlightKey]*flight
}

// FlightKey stands for a request, its credentials included, without holding them:
// it is a hash that only its Flights can compute. It prints nothing.
type FlightKey struct{ sum [sha256.Size]byte }

// String says that it is a key, and no more.
func (FlightKey) String() string { return "flight key" }

// Format is [FlightKey.String] for every verb, %#v included.
func (k FlightKey) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, k.String()) }

// Key returns the key of a request that is to be carried out at place, which names
// the network namespace (and whatever else of the place decides what a registry
// answers). Requests with the same key are the same in the name as it was written,
// the credentials, the namespace, the platform, the limits and the place: then,
// and only then, may one be given what the other was allowed.
func (f *Flights) Key(req Request, place string) FlightKey {
	f.mu.Lock()
	if f.secret == nil {
		f.secret = make([]byte, sha256.Size)
		_, _ = rand.Read(f.secret) // never fails (crypto/rand)
	}
	mac := hmac.New(sha256.New, f.secret)
	f.mu.Unlock()
	c, p := req.Credentials, req.Platform
	for _, part := range []string{
		req.Name, req.Namespace, place,
		c.Username, c.Password, c.Auth, c.IdentityToken, c.RegistryToken,
		p.OS, p.Architecture, p.Variant, p.OSVersion, strconv.Itoa(len(p.OSFeatures)),
		strconv.FormatInt(req.Limits.MaxImageBytes, 10), strconv.Itoa(req.Limits.MaxLayers),
	} {
		add(mac, part)
	}
	for _, feature := range p.OSFeatures {
		add(mac, feature)
	}
	var key FlightKey
	mac.Sum(key.sum[:0])
	return key
}

// add hashes a string with its length, so that no two lists of strings are the
// same bytes.
func add(h hash.Hash, part string) {
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(part)))
	h.Write(n[:])
	h.Write([]byte(part))
}

// flight is one pull and those who wait for it.
type flight struct {
	cancel  context.CancelFunc
	waiting int           // guarded by Flights.mu
	landed  chan struct{} // closed when result and err are there
	result  Result
	err     error
}

// Do returns what pull returns. While a pull of the same key is under way its
// result is waited for instead; it is then given without Stats, since it cost
// nothing more. A pull that panics is errdefs.Internal. A caller whose ctx ends leaves at once with the ctx's error and
// disturbs no other; when the last one has left, the pull's own context ends.
func (f *Flights) Do(ctx context.Context, key FlightKey, pull func(context.Context) (Result, error)) (Result, error) {
	if err := ctx.Err(); err != nil {
		return Result{}, err
	}
	on, joined := f.board(ctx, key, pull)
	defer f.leave(key, on)
	select {
	case <-ctx.Done():
		return Result{}, ctx.Err()
	case <-on.landed:
	}
	result := on.result
	if joined {
		result.Stats = Stats{}
	}
	return result, on.err
}

// board returns the flight of the key, started if there was none.
func (f *Flights) board(ctx context.Context, key FlightKey, pull func(context.Context) (Result, error)) (on *flight, joined bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if on = f.flights[key]; on != nil {
		on.waiting++
		return on, true
	}
	// The pull outlives the caller who started it, for the sake of the others.
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	on = &flight{cancel: cancel, waiting: 1, landed: make(chan struct{})}
	if f.flights == nil {
		f.flights = map[FlightKey]*flight{}
	}
	f.flights[key] = on
	go func() {
		defer close(on.landed)
		// Before anybody can have the result: whoever asks later asks anew.
		defer f.forget(key, on)
		on.result, on.err = survive(own, pull)
	}()
	return on, false
}

// survive runs a pull. What a registry sends may make a library panic; that costs the
// pull, and not every pod of the node its CRI.
func survive(ctx context.Context, pull func(context.Context) (Result, error)) (result Result, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = errdefs.Newf(errdefs.Internal, "pull", "it panicked: %v\n%s", p, debug.Stack())
		}
	}()
	return pull(ctx)
}

// leave takes one caller off a flight. Without any left it ends, and nobody joins
// it any more.
func (f *Flights) leave(key FlightKey, on *flight) {
	f.mu.Lock()
	on.waiting--
	last := on.waiting == 0
	if last && f.flights[key] == on {
		delete(f.flights, key)
	}
	f.mu.Unlock()
	if last {
		on.cancel()
	}
}

func (f *Flights) forget(key FlightKey, on *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.flights[key] == on {
		delete(f.flights, key)
	}
}
