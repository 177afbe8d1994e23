package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/testkit/shims"
	shimv1 "github.com/husk-cri/husk/pkg/api/shim/v1"
	"github.com/husk-cri/husk/pkg/errdefs"
)

func TestPull(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir, err := os.MkdirTemp("/tmp", "ctl") // a socket's path is short
	g.Expect(err).NotTo(HaveOccurred())
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	var asked *shimv1.PullImageRequest
	shim := &shims.Shim{ID: "s1", Pull: func(_ context.Context, req *shimv1.PullImageRequest, stream shimv1.Images_PullImageServer) error {
		asked = req
		if req.GetReference() == "refused" {
			return shims.Error(errdefs.New(errdefs.PolicyRefused, "pull", nil))
		}
		for _, resp := range []*shimv1.PullImageResponse{{Progress: &shimv1.Progress{Layers: 2}}, {Result: &shimv1.Image{ImageId: "id"}}} {
			if err := stream.Send(resp); err != nil {
				return err
			}
		}
		return nil
	}}
	shim.Start(t, dir)
	creds := filepath.Join(dir, "creds")
	g.Expect(os.WriteFile(creds, []byte("alice:s3:cret\n"), 0o600)).To(Succeed())

	var out bytes.Buffer
	g.Expect(run(t.Context(), []string{"pull", "--state", dir, "--sandbox", "s1", "--creds", creds, "r/a"}, &out)).To(Succeed())
	g.Expect(strings.Split(strings.TrimSpace(out.String()), "\n")).To(Equal([]string{`{"progress":{"layers":2}}`, `{"result":{"image_id":"id"}}`}))
	g.Expect([]string{asked.GetReference(), asked.GetCredentials().GetUsername(), asked.GetCredentials().GetPassword()}).To(Equal([]string{"r/a", "alice", "s3:cret"}))

	out.Reset()
	g.Expect(run(t.Context(), []string{"pull", "--state", dir, "--sandbox", "s1", "refused"}, &out)).NotTo(Succeed())
	g.Expect(out.String()).To(ContainSubstring(`"kind":"policy-refused"`))
	out.Reset()
	g.Expect(run(t.Context(), []string{"list", "--state", dir, "--sandbox", "s1"}, &out)).To(Succeed())
	g.Expect(out.String()).To(Equal(`{"images":[{"image_id":"id"}]}` + "\n"))
}

func TestCommandLine(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{
		"nothing": nil, "no sandbox": {"list"}, "no pod": {"list", "--state", "/no/such", "--sandbox", "s1"}, "no ID": {"list", "--sandbox", "../x"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			g.Expect(run(t.Context(), args, &bytes.Buffer{})).NotTo(Succeed())
		})
	}
}
