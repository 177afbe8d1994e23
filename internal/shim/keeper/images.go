package keeper

import (
	"context"
	"fmt"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	shimv1 "github.com/husk-cri/husk/pkg/api/shim/v1"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// ImageError returns err as the image service answers it: with the kind in the status's
// details, since several kinds share a code.
func ImageError(err error) error {
	if err == nil {
		return nil
	}
	s := status.Convert(errdefs.ToGRPC(err))
	detailed, detailErr := s.WithDetails(protoadapt.MessageV1Of(&shimv1.Kind{Kind: errdefs.KindOf(err).String()}))
	if detailErr != nil {
		return s.Err() // the code and the text are right all the same
	}
	return detailed.Err()
}

// lostImages answers the image service for a shim that is gone: its images are, and a
// pull that was under way cannot go on.
type lostImages struct{ pod string }

var _ shimv1.ImagesService = lostImages{}

func (l lostImages) refuse(op string) error {
	return ImageError(errdefs.New(errdefs.Unavailable, op, fmt.Errorf("the shim of pod %s was killed, and the pod with it", l.pod)))
}

// PullImage is refused, as is all that follows.
func (l lostImages) PullImage(_ context.Context, req *shimv1.PullImageRequest, _ shimv1.Images_PullImageServer) error {
	return l.refuse("pull " + req.GetReference())
}

// ListImages is refused.
func (l lostImages) ListImages(context.Context, *shimv1.ListImagesRequest) (*shimv1.ListImagesResponse, error) {
	return nil, l.refuse("list images")
}

// RemoveImage is refused.
func (l lostImages) RemoveImage(_ context.Context, req *shimv1.RemoveImageRequest) (*shimv1.RemoveImageResponse, error) {
	return nil, l.refuse("remove image " + req.GetImage())
}

// ImageStatus is refused.
func (l lostImages) ImageStatus(context.Context, *shimv1.ImageStatusRequest) (*shimv1.ImageStatusResponse, error) {
	return nil, l.refuse("tell the status of images")
}
