package guest

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"

	"github.com/husk-cri/husk/internal/guest/imagers"
	"github.com/husk-cri/husk/pkg/api/cdh"
	"github.com/husk-cri/husk/pkg/errdefs"
)

const (
	// resourceTimeout bounds a request to the key broker, through CDH: the agent's own
	// default for the hub (agent.cdh_api_timeout).
	resourceTimeout = 50 * time.Second
	// measureTimeout bounds the measurement of a pull, as in CDH.
	measureTimeout = 10 * time.Second

	measureDomain    = "github.com/confidential-containers"
	measureOperation = "PullImage"
)

// call makes one ttrpc request on a connection of its own.
func call(ctx context.Context, socket, service, method string, req, resp proto.Message) (err error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	client := ttrpc.NewClient(conn)
	defer func() { err = errors.Join(err, client.Close()) }()
	return client.Call(ctx, service, method, req, resp)
}

// hub is the Confidential Data Hub behind Husk.
type hub struct{ socket string }

var _ imagers.Resources = hub{}

// Resource implements [imagers.Resources].
func (h hub) Resource(ctx context.Context, uri string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, resourceTimeout)
	defer cancel()
	var resp cdh.GetResourceResponse
	err := call(ctx, h.socket, cdh.GetResourceService, cdh.GetResource, &cdh.GetResourceRequest{ResourcePath: uri}, &resp)
	if err != nil {
		return nil, errdefs.New(errdefs.Unavailable, "get resource from CDH", err)
	}
	return resp.GetResource(), nil
}

// measure adds the pull to the guest's measurement. Without an attestation agent there is
// nothing to add it to.
func (g *Guest) measure(ctx context.Context, image, digest string) error {
	if _, err := os.Stat(g.opts.AASocket); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	content, err := json.Marshal(struct {
		Image  string `json:"image"`
		Digest string `json:"digest"`
	}{image, digest})
	if err != nil {
		return errdefs.New(errdefs.Internal, "measure pull", err)
	}
	ctx, cancel := context.WithTimeout(ctx, g.measureTimeout)
	defer cancel()
	err = call(ctx, g.opts.AASocket, cdh.AttestationAgentService, cdh.ExtendRuntimeMeasurement, &cdh.ExtendRuntimeMeasurementRequest{
		Domain: measureDomain, Operation: measureOperation, Content: string(content),
	}, &cdh.ExtendRuntimeMeasurementResponse{})
	if err != nil {
		return errdefs.New(errdefs.Unavailable, "measure pull with the attestation agent", err)
	}
	return nil
}
