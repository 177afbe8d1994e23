package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
)

func TestServesUntilCancelled(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	log := filepath.Join(t.TempDir(), "log")
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	ended := make(chan error)
	go func() {
		ended <- run(ctx, []string{"--log", log, "--user", "ann:secret=ann/app", "--fault", "ping=status:503*1"}, w)
	}()
	host, err := bufio.NewReader(r).ReadString('\n')
	g.Expect(err).NotTo(HaveOccurred())
	for _, want := range []int{503, 200} {
		req, err := http.NewRequest(http.MethodGet, "http://"+strings.TrimSpace(host)+"/v2/", nil)
		g.Expect(err).NotTo(HaveOccurred())
		req.SetBasicAuth("ann", "secret")
		resp, err := http.DefaultClient.Do(req)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(resp.Body.Close()).To(Succeed())
		g.Expect(resp.StatusCode).To(Equal(want))
	}
	cancel()
	g.Expect(<-ended).To(Succeed())
	data, err := os.ReadFile(log)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(string(data)).NotTo(ContainSubstring("secret"))
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	g.Expect(lines).To(HaveLen(2))
	var line map[string]any
	g.Expect(json.Unmarshal([]byte(lines[1]), &line)).To(Succeed())
	g.Expect(line).To(And(HaveKeyWithValue("user", "ann"), HaveKeyWithValue("status", 200.0), HaveKeyWithValue("path", "/v2/")))
}

// TestFaultFile: what stands in the file holds from then on, and no longer.
func TestFaultFile(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	file := filepath.Join(t.TempDir(), "faults")
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	ended := make(chan error)
	go func() { ended <- run(ctx, []string{"--faults", file}, w) }()
	host, err := bufio.NewReader(r).ReadString('\n')
	g.Expect(err).NotTo(HaveOccurred())
	ping := func() int {
		resp, err := http.Get("http://" + strings.TrimSpace(host) + "/v2/")
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(resp.Body.Close()).To(Succeed())
		return resp.StatusCode
	}
	g.Expect(ping()).To(Equal(http.StatusOK))
	for text, want := range map[string][]int{
		"any=status:503":                         {503, 503},
		"ping=status:500\n\nping=status:503*1\n": {503, 200},
		"blob=status:503":                        {200},
		"nonsense":                               {http.StatusTeapot},
		"":                                       {200},
	} {
		g.Expect(os.WriteFile(file, []byte(text), 0o600)).To(Succeed())
		for _, status := range want {
			g.Expect(ping()).To(Equal(status), "%q", text)
		}
	}
	cancel()
	g.Expect(<-ended).To(Succeed())
}

func TestFlags(t *testing.T) {
	t.Parallel()
	for args, ok := range map[string]bool{
		"--fault manifest:v1=drip:1ms*3":                    true,
		"--fault any=too-many:2 --fault blob=cut-body:3":    true,
		"--fault lookaside=hang --fault token=drop":         true,
		"--user a:b --identity-token c --bearer --public d": true,
		"--client-cert":           false,
		"--identity-token c":      false,
		"--user a":                false,
		"--fault any":             false,
		"--fault other=hang":      false,
		"--fault any=other:1":     false,
		"--fault any=status:many": false,
		"--fault any=drip:0s":     false,
		"--fault any=hang*often":  false,
		"--fault ping=cut-headers --fault any=corrupt --x=1": false,
	} {
		_, err := parse(strings.Fields(args))
		NewWithT(t).Expect(err == nil).To(Equal(ok), args)
	}
}
