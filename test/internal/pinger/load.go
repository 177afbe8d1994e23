package main

import (
	"context"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// deadline is much longer than any restart: a request that runs into it was lost.
	deadline = 20 * time.Second
	// maxReported bounds how many of the failures are told.
	maxReported = 10
)

// options say what to ask whom.
type options struct {
	socket, image string
	rate          int
	last          time.Duration
	wait          bool
}

// summary is what became of the requests.
type summary struct {
	Requests int `json:"requests"`
	// Unavailable is how many ended with that code, which clients may repeat.
	Unavailable int `json:"unavailable"`
	// Failures is how many ended with any other code, or with a wrong answer.
	Failures  int      `json:"failures"`
	Errors    []string `json:"errors,omitempty"`
	MedianMs  float64  `json:"median_ms"`
	SlowestMs float64  `json:"slowest_ms"`
}

// run asks at the rate, whether or not earlier requests have been answered.
func (o options) run(ctx context.Context) (summary, error) {
	conn, err := grpc.NewClient("unix:"+o.socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(o.wait)))
	if err != nil {
		return summary{}, err
	}
	defer func() { _ = conn.Close() }()
	if o.last > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.last)
		defer cancel()
	}
	var sum summary
	var took []time.Duration
	var mu sync.Mutex
	var pending sync.WaitGroup
	tick := time.NewTicker(time.Second / time.Duration(o.rate))
	defer tick.Stop()
	for i := 0; ctx.Err() == nil; i++ {
		select {
		case <-ctx.Done():
			continue
		case <-tick.C:
		}
		pending.Go(func() {
			begun := time.Now()
			// The end of the load is not the end of what is under way.
			err := o.ask(context.WithoutCancel(ctx), conn, i)
			mu.Lock()
			defer mu.Unlock()
			took = append(took, time.Since(begun))
			sum.count(err)
		})
	}
	pending.Wait()
	slices.Sort(took)
	if len(took) > 0 {
		sum.MedianMs = took[len(took)/2].Seconds() * 1e3
		sum.SlowestMs = took[len(took)-1].Seconds() * 1e3
	}
	return sum, nil
}

// ask makes the i-th request: kubelet's commonest, in turn.
func (o options) ask(ctx context.Context, conn *grpc.ClientConn, i int) error {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	var err error
	switch i % 3 {
	case 0:
		var answer *cri.VersionResponse
		if answer, err = cri.NewRuntimeServiceClient(conn).Version(ctx, &cri.VersionRequest{}); err == nil && answer.GetRuntimeName() != "cri-o" {
			return status.Errorf(codes.DataLoss, "Version: %v", answer)
		}
	case 1:
		_, err = cri.NewRuntimeServiceClient(conn).ListContainers(ctx, &cri.ListContainersRequest{})
	default:
		var answer *cri.ImageStatusResponse
		request := &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: o.image}}
		if answer, err = cri.NewImageServiceClient(conn).ImageStatus(ctx, request); err == nil && o.image != "" && answer.GetImage() == nil {
			return status.Errorf(codes.DataLoss, "ImageStatus: %s is not there", o.image)
		}
	}
	return err
}

func (s *summary) count(err error) {
	s.Requests++
	switch status.Code(err) {
	case codes.OK:
		return
	case codes.Unavailable:
		s.Unavailable++
	default:
		s.Failures++
	}
	if len(s.Errors) < maxReported {
		s.Errors = append(s.Errors, err.Error())
	}
}
