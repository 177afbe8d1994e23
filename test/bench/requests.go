package main

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/internal/testkit/images"
	"github.com/husk-cri/husk/test/internal/rig"
)

const requestRounds = 5

// RequestsResult is what one pull costs the registry, by what is there already, and
// the same question asked by `skopeo inspect --config`, which also reads a manifest
// and a config and nothing else.
type RequestsResult struct {
	ColdTag    RequestsRun `json:"husk_cold_tag"`
	WarmTag    RequestsRun `json:"husk_warm_tag"`
	WarmDigest RequestsRun `json:"husk_warm_digest"`
	ColdIndex  RequestsRun `json:"husk_cold_index"`
	WarmIndex  RequestsRun `json:"husk_warm_index"`
	Skopeo     RequestsRun `json:"skopeo_inspect_config_tag"`
	SkopeoIdx  RequestsRun `json:"skopeo_inspect_config_index"`
	Goal       string      `json:"goal"`
	Reached    bool        `json:"goal_reached"`
}

// RequestsRun is one case: the requests of the last round, and the median time.
type RequestsRun struct {
	Requests []string `json:"requests"`
	Bytes    int64    `json:"bytes"`
	MedianMS float64  `json:"median_ms"`
}

func measureRequests(ctx context.Context, r *rig.Rig) (any, error) {
	tag, _, err := r.Push(ctx, "bench/requests", images.Spec{Busybox: images.DefaultBusybox})
	if err != nil {
		return nil, err
	}
	index, _, err := r.Push(ctx, "bench/index", images.Spec{
		Busybox:   images.DefaultBusybox,
		Platforms: []imgspec.Platform{{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "arm64"}},
	})
	if err != nil {
		return nil, err
	}
	cri, err := dial(r.Node.FrontSocket)
	if err != nil {
		return nil, err
	}
	defer cri.close()
	if err := cri.pull(ctx, tag, "husk"); err != nil {
		return nil, err
	}
	pinned, err := cri.pinned(ctx, tag, "husk")
	if err != nil {
		return nil, err
	}
	result := RequestsResult{Goal: "cold: ping, (index,) manifest, config; warm: no blob again; warm digest: one authorised check"}
	pull := func(ref string) func() error { return func() error { return cri.pull(ctx, ref, "husk") } }
	drop := func(ref string) func() error { return func() error { return cri.remove(ctx, ref, "husk") } }
	nothing := func() error { return nil }
	skopeo := func(ref string) func() error {
		return func() error {
			out, err := exec.CommandContext(ctx, "skopeo", "inspect", "--config", "--tls-verify=false", "docker://"+ref).CombinedOutput()
			if err != nil {
				return fmt.Errorf("skopeo inspect: %w: %s", err, out)
			}
			return nil
		}
	}
	for _, c := range []struct {
		run         *RequestsRun
		before, act func() error
	}{
		{&result.ColdTag, drop(tag), pull(tag)},
		{&result.WarmTag, nothing, pull(tag)},
		{&result.WarmDigest, nothing, pull(pinned)},
		{&result.ColdIndex, drop(index), pull(index)},
		{&result.WarmIndex, nothing, pull(index)},
		{&result.Skopeo, nothing, skopeo(tag)},
		{&result.SkopeoIdx, nothing, skopeo(index)},
	} {
		if err := requestsOf(ctx, r, c.run, c.before, c.act); err != nil {
			return nil, err
		}
	}
	result.Reached = len(result.ColdTag.Requests) == 3 && len(result.WarmTag.Requests) == 2 && len(result.WarmDigest.Requests) == 2 &&
		len(result.ColdIndex.Requests) == 4 && len(result.WarmIndex.Requests) == 2
	return result, nil
}

// requestsOf repeats one case and keeps the requests of the last round.
func requestsOf(ctx context.Context, r *rig.Rig, run *RequestsRun, before, act func() error) error {
	var times []float64
	for range requestRounds {
		if err := before(); err != nil {
			return err
		}
		since, err := r.LogEnd(ctx)
		if err != nil {
			return err
		}
		start := time.Now()
		if err := act(); err != nil {
			return err
		}
		times = append(times, float64(time.Since(start).Microseconds())/1000)
		requests, err := r.Requests(ctx, since)
		if err != nil {
			return err
		}
		run.Requests, run.Bytes = nil, 0
		for _, q := range requests {
			path, _, _ := strings.Cut(q.Path, "@")
			run.Requests = append(run.Requests, q.Method+" "+path)
			run.Bytes += q.Bytes
		}
	}
	run.MedianMS = median(times)
	return nil
}
