package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// client is kubelet's remote runtime and image service (k8s.io/cri-client). It writes
// down every call in the order in which they are made; one goroutine uses it.
type client struct {
	conn    *grpc.ClientConn
	runtime cri.RuntimeServiceClient
	images  cri.ImageServiceClient
	calls   []call
}

// call is one CRI call as it went over the socket. The request's password is left out.
type call struct {
	Method   string          `json:"method"`
	Request  json.RawMessage `json:"request"`
	Response json.RawMessage `json:"response,omitempty"`
	Code     string          `json:"code"`
	Message  string          `json:"message,omitempty"`
}

func dial(socket string) (*client, error) {
	c := &client{calls: []call{}}
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithUnaryInterceptor(c.record))
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", socket, err)
	}
	c.conn, c.runtime, c.images = conn, cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)
	return c, nil
}

func (c *client) record(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	callErr := invoke(ctx, method, req, reply, conn, opts...)
	one := call{Method: method[strings.LastIndex(method, "/")+1:], Code: status.Code(callErr).String()}
	var err error
	if one.Request, err = printed(req); err != nil {
		return err
	}
	if callErr != nil {
		one.Message = status.Convert(callErr).Message()
	} else if one.Response, err = printed(reply); err != nil {
		return err
	}
	c.calls = append(c.calls, one)
	return callErr
}

// printed is a message as JSON, without what nobody may read.
func printed(message any) (json.RawMessage, error) {
	m, ok := message.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("%T is no protobuf message", message)
	}
	if pull, ok := m.(*cri.PullImageRequest); ok && pull.Auth != nil {
		clean, _ := proto.Clone(pull).(*cri.PullImageRequest)
		clean.Auth = &cri.AuthConfig{Username: pull.Auth.Username}
		m = clean
	}
	return protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
}

// pulls is how often PullImage was called.
func (c *client) pulls() int {
	n := 0
	for _, one := range c.calls {
		if one.Method == "PullImage" {
			n++
		}
	}
	return n
}

// imageStatus is remoteImageService.ImageStatus (k8s.io/cri-client, remote_image.go),
// which takes an image without an ID or a size for an error.
func (c *client) imageStatus(ctx context.Context, spec *cri.ImageSpec) (*cri.Image, error) {
	answer, err := c.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: spec})
	if err != nil {
		return nil, err
	}
	if i := answer.GetImage(); i != nil && (i.Id == "" || i.Size == 0) {
		return nil, fmt.Errorf("id or size of image %q is not set", spec.Image)
	}
	return answer.GetImage(), nil
}

// pullImage is remoteImageService.PullImage, which strips the code Unknown so that the
// sentinels of the CRI stand first.
func (c *client) pullImage(ctx context.Context, spec *cri.ImageSpec, auth *cri.AuthConfig, sandbox *cri.PodSandboxConfig) (string, error) {
	answer, err := c.images.PullImage(ctx, &cri.PullImageRequest{Image: spec, Auth: auth, SandboxConfig: sandbox})
	if status.Code(err) == codes.Unknown {
		return "", errors.New(status.Convert(err).Message())
	}
	if err != nil {
		return "", err
	}
	if answer.ImageRef == "" {
		return "", fmt.Errorf("imageRef of image %q is not set", spec.Image)
	}
	return answer.ImageRef, nil
}

// listPodContainers is what getPodContainerStatuses asks first (kuberuntime_container.go).
func (c *client) listPodContainers(ctx context.Context, uid string) ([]*cri.Container, error) {
	answer, err := c.runtime.ListContainers(ctx, &cri.ListContainersRequest{
		Filter: &cri.ContainerFilter{LabelSelector: map[string]string{labelPodUID: uid}},
	})
	return answer.GetContainers(), err
}
