// Command taskcall calls a method of a pod's task service, for the end-to-end tests of what CRI-O never calls:
//
//	taskcall SOCKET METHOD [REQUEST]
//
// REQUEST and the answer are protobuf's JSON. An error is printed as "CODE: MESSAGE".
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	_ "github.com/containerd/cgroups/v3/cgroup1/stats" // to print the answer of Stats
	_ "github.com/containerd/cgroups/v3/cgroup2/stats"
	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
)

// timeout ends a call that nobody answers; Wait may take as long.
const timeout = time.Minute

func main() {
	if err := run(os.Args[1:]); err != nil {
		if s, ok := status.FromError(err); ok {
			fmt.Fprintf(os.Stderr, "%s: %s\n", s.Code(), s.Message())
		} else {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 2 || len(args) > 3 {
		return errors.New("usage: taskcall SOCKET METHOD [REQUEST]")
	}
	services := taskapi.File_github_com_containerd_containerd_api_runtime_task_v2_shim_proto.Services()
	service := services.Get(0)
	method := service.Methods().ByName(protoreflect.Name(args[1]))
	if method == nil {
		return fmt.Errorf("%s has no method %s", service.FullName(), args[1])
	}
	req, resp := dynamicpb.NewMessage(method.Input()), dynamicpb.NewMessage(method.Output())
	if len(args) == 3 {
		if err := protojson.Unmarshal([]byte(args[2]), req); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", args[0])
	if err != nil {
		return err
	}
	client := ttrpc.NewClient(conn)
	defer func() { _ = client.Close() }() // the process ends with it
	if err := client.Call(ctx, string(service.FullName()), args[1], req, resp); err != nil {
		return err
	}
	fmt.Println(protojson.MarshalOptions{EmitUnpopulated: true}.Format(resp))
	return nil
}
