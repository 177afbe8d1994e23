package main

import (
	"context"
	"slices"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// collected is what an image garbage collection did. Images are "ID" or "ID,HANDLER".
type collected struct {
	InUse   []string          `json:"inUse"`
	Removed []string          `json:"removed"`
	Refused map[string]string `json:"refused"` // and what was answered
	Calls   []call            `json:"calls"`
}

// imageKey is getImageTuple (pkg/kubelet/images/image_gc_manager.go).
func (k *kubelet) imageKey(id, handler string) string {
	if !k.node.Gate || handler == "" {
		return id
	}
	return id + "," + handler
}

// imagesInUse is the first half of detectImages: the images of all containers, alive
// or dead (runtime.GetPods).
func (k *kubelet) imagesInUse(ctx context.Context) ([]string, error) {
	if _, err := k.cri.runtime.ListPodSandbox(ctx, new(cri.ListPodSandboxRequest)); err != nil {
		return nil, err
	}
	answer, err := k.cri.runtime.ListContainers(ctx, &cri.ListContainersRequest{Filter: new(cri.ContainerFilter)})
	if err != nil {
		return nil, err
	}
	used := []string{}
	for _, c := range answer.GetContainers() {
		id := c.GetImageId() // toKubeContainer (kuberuntime/helpers.go)
		if id == "" {
			id = c.GetImageRef()
		}
		used = append(used, k.imageKey(id, c.GetImage().GetRuntimeHandler()))
	}
	slices.Sort(used)
	return slices.Compact(used), nil
}

// imageRecord is what kubelet keeps of a listed image.
type imageRecord struct {
	key, id, handler string
	pinned           bool
}

// evictable is imagesInEvictionOrder. Of entries with one key the last one counts.
func (k *kubelet) evictable(images []*cri.Image, used []string) []imageRecord {
	var records []imageRecord
	for _, image := range images {
		r := imageRecord{id: image.GetId(), pinned: image.GetPinned()}
		if k.node.Gate {
			r.handler = image.GetSpec().GetRuntimeHandler()
		}
		r.key = k.imageKey(r.id, r.handler)
		records = slices.DeleteFunc(records, func(before imageRecord) bool { return before.key == r.key })
		records = append(records, r)
	}
	return slices.DeleteFunc(records, func(r imageRecord) bool { return r.pinned || slices.Contains(used, r.key) })
}

// deleteUnusedImages is DeleteUnusedImages, with an imageMinimumGCAge of 0: everything
// that no container uses and CRI-O has not pinned. kubelet never names a handler when
// it removes (kuberuntime/kuberuntime_image.go, RemoveImage); named says to name it.
func (k *kubelet) deleteUnusedImages(ctx context.Context, named bool) (collected, error) {
	began := time.Now()
	done := collected{Removed: []string{}, Refused: map[string]string{}}
	listed, err := k.cri.images.ListImages(ctx, new(cri.ListImagesRequest))
	if err != nil {
		return done, err
	}
	if done.InUse, err = k.imagesInUse(ctx); err != nil {
		return done, err
	}
	var left []string
	for _, image := range k.evictable(listed.GetImages(), done.InUse) {
		spec := &cri.ImageSpec{Image: image.id}
		if named {
			spec.RuntimeHandler = image.handler
		}
		if _, err := k.cri.images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: spec}); err != nil {
			done.Refused[image.key] = err.Error()
			left = append(left, image.id)
			continue
		}
		done.Removed = append(done.Removed, image.key)
	}
	done.Calls = k.cri.calls
	if k.pulled != nil && len(done.Refused) == 0 { // runPostGCHooks
		return done, k.pulled.update(func(r *pullRecords) { r.prune(left, began) })
	}
	return done, nil
}
