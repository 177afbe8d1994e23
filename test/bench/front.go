package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/internal/testkit/images"
	"github.com/husk-cri/husk/test/internal/rig"
)

const (
	frontContainers = 100
	manyContainers  = 1000
	frontCalls      = 2000
	manyCalls       = 300
	frontWarmUp     = 50
)

// FrontResult is what the front adds to a call, against CRI-O's own socket, and
// what a proxy that understands nothing (socat) adds: the least that any process in
// between can. The three are asked in turn, so that all see the same machine.
type FrontResult struct {
	Containers     int     `json:"containers"`
	Calls          int     `json:"calls_each"`
	ListContainers Latency `json:"list_containers"`
	ListThousand   Latency `json:"list_1000_containers"`
	Version        Latency `json:"version"`
	Goal           string  `json:"goal"`
	GoalReached    bool    `json:"goal_reached"`
}

// Latency is in microseconds. Added is the difference of the percentiles.
type Latency struct {
	DirectP50 float64 `json:"direct_p50_us"`
	DirectP99 float64 `json:"direct_p99_us"`
	FrontP50  float64 `json:"front_p50_us"`
	FrontP99  float64 `json:"front_p99_us"`
	ProxyP50  float64 `json:"byte_proxy_p50_us"`
	AddedP50  float64 `json:"added_p50_us"`
	AddedP99  float64 `json:"added_p99_us"`
	ProxyAdds float64 `json:"byte_proxy_added_p50_us"`
}

func measureFront(ctx context.Context, r *rig.Rig) (any, error) {
	if err := makeContainers(ctx, r, "bench-front", frontContainers); err != nil {
		return nil, err
	}
	front, err := dial(r.Node.FrontSocket)
	if err != nil {
		return nil, err
	}
	defer front.close()
	direct, err := dial(r.Node.CRIO.Socket)
	if err != nil {
		return nil, err
	}
	defer direct.close()
	proxied, err := r.StartByteProxy(ctx)
	if err != nil {
		return nil, err
	}
	proxy, err := dial(proxied)
	if err != nil {
		return nil, err
	}
	defer proxy.close()
	sides := []*client{direct, front, proxy}

	result := FrontResult{Containers: frontContainers, Calls: frontCalls, Goal: "p50 added under 200 us"}
	list := func(atLeast int) func(context.Context, *client) error {
		return func(ctx context.Context, c *client) error {
			list, err := c.runtime.ListContainers(ctx, &cri.ListContainersRequest{})
			if err == nil && len(list.GetContainers()) < atLeast {
				err = fmt.Errorf("%d containers are listed", len(list.GetContainers()))
			}
			return err
		}
	}
	if result.ListContainers, err = compare(ctx, sides, frontCalls, list(frontContainers)); err != nil {
		return nil, err
	}
	result.Version, err = compare(ctx, sides, frontCalls, func(ctx context.Context, c *client) error {
		_, err := c.runtime.Version(ctx, &cri.VersionRequest{})
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := makeContainers(ctx, r, "bench-many", manyContainers-frontContainers); err != nil {
		return nil, err
	}
	result.ListThousand, err = compare(ctx, sides, manyCalls, list(manyContainers))
	result.GoalReached = result.ListContainers.AddedP50 < 200 && result.Version.AddedP50 < 200
	return result, err
}

// makeContainers creates ordinary containers in one pod; they need not run.
func makeContainers(ctx context.Context, r *rig.Rig, name string, n int) error {
	ref, _, err := r.Push(ctx, "bench/front", images.Spec{Busybox: images.DefaultBusybox})
	if err != nil {
		return err
	}
	pod, err := r.RunPod(ctx, name, "runc")
	if err != nil {
		return err
	}
	if _, err := r.Crictl(ctx, "pull", ref); err != nil {
		return err
	}
	return atOnce(ctx, n, func(ctx context.Context, i int) error {
		c := rig.Container{Name: fmt.Sprintf("c%d", i), Image: ref, Asked: ref, Args: []string{"/bin/sleep", "1000"}}
		_, err := r.Create(ctx, pod, c)
		return err
	})
}

// compare measures one call on CRI-O's socket, the front's and the byte proxy's.
func compare(ctx context.Context, sides []*client, calls int, call func(context.Context, *client) error) (Latency, error) {
	times := make([][]float64, len(sides))
	for i := range frontWarmUp + calls {
		for side, c := range sides {
			start := time.Now()
			if err := call(ctx, c); err != nil {
				return Latency{}, err
			}
			if i >= frontWarmUp {
				times[side] = append(times[side], float64(time.Since(start).Nanoseconds())/1000)
			}
		}
	}
	at := func(side int, p float64) float64 { return times[side][int(p*float64(len(times[side])-1))] }
	for _, t := range times {
		slices.Sort(t)
	}
	l := Latency{DirectP50: at(0, .5), DirectP99: at(0, .99), FrontP50: at(1, .5), FrontP99: at(1, .99)}
	l.ProxyP50 = at(2, .5)
	l.ProxyAdds = l.ProxyP50 - l.DirectP50
	l.AddedP50, l.AddedP99 = l.FrontP50-l.DirectP50, l.FrontP99-l.DirectP99
	return l, nil
}
