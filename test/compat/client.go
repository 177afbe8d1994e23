package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// pullTimeout bounds one pull.
const pullTimeout = 30 * time.Second

// pull is what is asked of both.
type pull struct {
	image     string
	auth      *cri.AuthConfig
	namespace string
}

// outcome is what came of a pull.
type outcome struct {
	// Class is "ok" or a class of errors, see classify.
	Class   string
	Code    string
	Message string `json:",omitempty"`
	// ID, Tags and Digests are what ImageStatus then says.
	ID       string   `json:",omitempty"`
	Tags     []string `json:",omitempty"`
	Digests  []string `json:",omitempty"`
	User     string   `json:",omitempty"`
	Requests []seen
}

// client is a CRI client.
type client struct {
	conn    *grpc.ClientConn
	images  cri.ImageServiceClient
	runtime cri.RuntimeServiceClient
}

// dial connects to a daemon and waits until it answers.
func dial(ctx context.Context, socket string) (*client, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", socket, err)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	c := &client{conn, cri.NewImageServiceClient(conn), cri.NewRuntimeServiceClient(conn)}
	if _, err := c.images.ListImages(ctx, &cri.ListImagesRequest{}, grpc.WaitForReady(true)); err != nil {
		return nil, fmt.Errorf("dial %s: %w", socket, err)
	}
	return c, nil
}

func (c *client) close() { _ = c.conn.Close() }

// do pulls, says what the image then is, does what then is to be done with it, and
// removes it again.
func (c *client) do(ctx context.Context, p pull, handler string, then func(context.Context, *cri.Image) error) (o outcome, err error) {
	ctx, cancel := context.WithTimeout(ctx, pullTimeout)
	defer cancel()
	spec := &cri.ImageSpec{Image: p.image, RuntimeHandler: handler}
	req := &cri.PullImageRequest{Image: spec, Auth: p.auth}
	if p.namespace != "" {
		req.SandboxConfig = &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Name: "p", Uid: "u", Namespace: p.namespace}}
	}
	if _, err := c.images.PullImage(ctx, req); err != nil {
		return failure(err), nil
	}
	got, err := c.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: spec})
	if err != nil {
		return outcome{}, fmt.Errorf("status of %s: %w", p.image, err)
	}
	i := got.GetImage()
	if i == nil {
		return outcome{}, fmt.Errorf("%s was pulled and is not there", p.image)
	}
	defer func() {
		_, e := c.images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: i.GetId(), RuntimeHandler: handler}})
		if err == nil && e != nil {
			err = fmt.Errorf("remove %s: %w", p.image, e)
		}
	}()
	if err := then(ctx, i); err != nil {
		return failure(err), nil
	}
	return outcome{
		Class: classOK, Code: codes.OK.String(), ID: strings.TrimPrefix(i.GetId(), "sha256:"),
		Tags: slices.Sorted(slices.Values(i.GetRepoTags())), Digests: slices.Sorted(slices.Values(i.GetRepoDigests())),
	}, nil
}

func failure(err error) outcome {
	return outcome{Class: classify(err), Code: status.Code(err).String(), Message: status.Convert(err).Message()}
}

// Classes of outcomes. Stock CRI-O tells almost all of its errors by text alone,
// so that is what they are told apart by here, in both.
const (
	classOK       = "ok"
	classPolicy   = "policy"
	classTLS      = "tls"
	classRefused  = "refused"
	classBlocked  = "blocked"
	classDenied   = "denied"
	classMissing  = "missing"
	classPlatform = "platform"
	className     = "name"
	classArtifact = "artifact"
	classDigest   = "digest"
	classLarge    = "large"
	classBroken   = "broken"
	classOther    = "other"
)

// classify returns the class of an error.
func classify(err error) string {
	text := status.Convert(err).Message()
	for _, c := range []struct {
		class string
		parts []string
	}{
		{classPolicy, []string{"SignatureValidationFailed"}},
		{classTLS, []string{"x509:", "tls:", "HTTP response to HTTPS client", "certificate required"}},
		{classRefused, []string{"connection refused"}},
		{classBlocked, []string{"blocked"}},
		{classPlatform, []string{"no image found in", "has no image for platform"}},
		{classDenied, []string{"unauthorized", "authentication required", "access to the resource is denied", ": denied", "invalid username/password"}},
		{classMissing, []string{"manifest unknown", "name unknown", "NAME_UNKNOWN", "Unknown name", "Unknown manifest", "404 (Not Found)"}},
		{className, []string{"cannot parse input"}},
		{classDigest, []string{"does not match provided manifest digest", "digest sha256:", "not the sha256:"}},
		{classLarge, []string{"exceeded maximum allowed size"}},
		{classBroken, []string{"unexpected EOF", "503 Service Unavailable", "500 Internal Server Error"}},
		{classArtifact, []string{"it is an artifact"}},
	} {
		if slices.ContainsFunc(c.parts, func(part string) bool { return strings.Contains(text, part) }) {
			return c.class
		}
	}
	return classOther
}
