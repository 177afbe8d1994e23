package main

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// client is a CRI client that stays connected, so that only calls are measured.
type client struct {
	conn    *grpc.ClientConn
	runtime cri.RuntimeServiceClient
	images  cri.ImageServiceClient
}

func dial(socket string) (*client, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", socket, err)
	}
	return &client{conn, cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)}, nil
}

func (c *client) close() { _ = c.conn.Close() }

func (c *client) pull(ctx context.Context, ref, handler string) error {
	_, err := c.images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref, RuntimeHandler: handler}})
	return err
}

func (c *client) remove(ctx context.Context, ref, handler string) error {
	_, err := c.images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: ref, RuntimeHandler: handler}})
	return err
}

// pinned returns the first repo@digest of an image that a handler holds.
func (c *client) pinned(ctx context.Context, ref, handler string) (string, error) {
	answer, err := c.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: ref, RuntimeHandler: handler}})
	if err != nil {
		return "", err
	}
	if len(answer.GetImage().GetRepoDigests()) == 0 {
		return "", fmt.Errorf("%s has no digest", ref)
	}
	return answer.GetImage().GetRepoDigests()[0], nil
}
