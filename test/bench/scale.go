package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/test/internal/rig"
)

const (
	scaleImages = 1000
	scaleCalls  = 100
)

// ScaleResult compares a node with 1,000 records, asked through husk, with one where
// stock CRI-O holds the same 1,000 images in full.
type ScaleResult struct {
	Images int       `json:"images"`
	Husk   ScaleSide `json:"husk_records"`
	Stock  ScaleSide `json:"stock_full_images"`
	// The ratios are stock / husk of the medians.
	ListRatio   float64 `json:"list_images_ratio"`
	StatusRatio float64 `json:"image_status_ratio"`
}

// ScaleSide is one side. RSS is of the process that was asked: husk, or CRI-O. Husk
// asks CRI-O for its images too when it lists them; ListOwn is the list of one
// handler, which is Husk's alone.
type ScaleSide struct {
	ListImagesMS  float64 `json:"list_images_p50_ms"`
	ListOwnMS     float64 `json:"list_images_of_handler_p50_ms,omitempty"`
	ImageStatusMS float64 `json:"image_status_p50_ms"`
	RSSBeforeKiB  int64   `json:"rss_before_kib"`
	RSSAfterKiB   int64   `json:"rss_after_kib"`
}

// measureScale has husk's side on the rig's node, and CRI-O's on a fresh one.
func measureScale(ctx context.Context, r *rig.Rig, opts rig.Options) (result ScaleResult, err error) {
	result.Images = scaleImages
	if result.Husk, err = scaleSide(ctx, r, "husk"); err != nil {
		return result, err
	}
	stock, err := rig.Start(ctx, opts)
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, stock.Close(context.WithoutCancel(ctx))) }()
	if result.Stock, err = scaleSide(ctx, stock, ""); err != nil {
		return result, err
	}
	result.ListRatio = result.Stock.ListImagesMS / result.Husk.ListImagesMS
	result.StatusRatio = result.Stock.ImageStatusMS / result.Husk.ImageStatusMS
	return result, nil
}

// scaleSide pulls the images for a handler through husk, or for none through CRI-O
// itself, and asks about them.
func scaleSide(ctx context.Context, r *rig.Rig, handler string) (side ScaleSide, err error) {
	socket, daemon := r.Node.CRIO.Socket, "crio"
	if handler != "" {
		socket, daemon = r.Node.FrontSocket, "husk"
	}
	pid, err := r.PID(daemon)
	if err != nil {
		return side, err
	}
	if side.RSSBeforeKiB, err = residentKiB(pid); err != nil {
		return side, err
	}
	refs, err := pushMany(ctx, r, "bench/scale", scaleImages)
	if err != nil {
		return side, err
	}
	c, err := dial(socket)
	if err != nil {
		return side, err
	}
	defer c.close()
	if err := atOnce(ctx, len(refs), func(ctx context.Context, i int) error { return c.pull(ctx, refs[i], handler) }); err != nil {
		return side, err
	}
	list := func(filter *cri.ImageFilter) func(int) error {
		return func(int) error {
			answer, err := c.images.ListImages(ctx, &cri.ListImagesRequest{Filter: filter})
			if err == nil && len(answer.GetImages()) < scaleImages {
				err = fmt.Errorf("%d images are listed", len(answer.GetImages()))
			}
			return err
		}
	}
	if side.ListImagesMS, err = medianOf(scaleCalls/10, list(nil)); err != nil {
		return side, err
	}
	if handler != "" {
		if side.ListOwnMS, err = medianOf(scaleCalls/10, list(&cri.ImageFilter{Image: &cri.ImageSpec{RuntimeHandler: handler}})); err != nil {
			return side, err
		}
	}
	side.ImageStatusMS, err = medianOf(scaleCalls, func(i int) error {
		ref := refs[i*7%len(refs)]
		answer, err := c.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: ref, RuntimeHandler: handler}})
		if err == nil && answer.GetImage() == nil {
			err = errors.New("no image " + ref)
		}
		return err
	})
	if err != nil {
		return side, err
	}
	side.RSSAfterKiB, err = residentKiB(pid)
	return side, err
}

// medianOf is the median time of n calls, in milliseconds.
func medianOf(n int, call func(i int) error) (float64, error) {
	times := make([]float64, 0, n)
	for i := range n {
		start := time.Now()
		if err := call(i); err != nil {
			return 0, err
		}
		times = append(times, float64(time.Since(start).Microseconds())/1000)
	}
	return median(slices.Clone(times)), nil
}
