package main

import (
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"testing"

	. "github.com/onsi/gomega"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/husk-cri/husk/test/internal/rig"
)

func TestClassify(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	for text, want := range map[string]string{
		"SignatureValidationFailed: unauthorized":                         classPolicy,
		"pinging: tls: failed to verify certificate: x509: unknown":       classTLS,
		"RegistryUnavailable: dial tcp: connection refused":               classRefused,
		"reading manifest v1: manifest unknown":                           classMissing,
		"reading manifest v1 in 10.0.0.1:4040/app: denied":                classDenied,
		"no space left on device":                                         classOther,
		"read /tmp/404/x: unexpected end of JSON input":                   classOther,
		"no image found in image index for architecture \"amd64\"":        classPlatform,
		"unable to retrieve auth token: invalid username/password: nope.": classDenied,
	} {
		g.Expect(classify(errors.New(text))).To(Equal(want), text)
		g.Expect(classify(status.Error(codes.Internal, text))).To(Equal(want), text)
	}
}

// judged is what judge says of a case in which both did the same, but for edits.
func judged(c testCase, edit func(stock, husk *outcome)) []string {
	w := &world{layers: map[digest.Digest]bool{digest.FromString("layer"): true}}
	manifest := seen{Registry: "r", Method: "GET", Path: "/v2/app/manifests/v1", Scheme: "basic", User: "ann", Status: 200}
	layer := seen{Registry: "r", Method: "GET", Path: "/v2/app/blobs/" + digest.FromString("layer").String(), Status: 200}
	stock := outcome{Class: classOK, Code: "OK", ID: "1", User: "ann", Requests: []seen{manifest, manifest, layer}}
	husk := outcome{Class: classOK, Code: "OK", ID: "1", User: "ann", Requests: []seen{manifest}}
	edit(&stock, &husk)
	return w.judge(c, stock, husk)
}

func TestJudge(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	c := testCase{Want: classOK, From: "r", User: "ann"}
	g.Expect(judged(c, func(_, _ *outcome) {})).To(BeEmpty())
	for name, edit := range map[string]func(stock, husk *outcome){
		"another image":         func(_, h *outcome) { h.ID = "2" },
		"another tag":           func(_, h *outcome) { h.Tags = []string{"x"} },
		"another identity":      func(_, h *outcome) { h.User = "bob" },
		"stock has another":     func(s, _ *outcome) { s.User = "bob" },
		"another outcome":       func(_, h *outcome) { h.Class = classDenied },
		"another registry":      func(_, h *outcome) { h.Requests[0].Registry = "s" },
		"a layer":               func(s, h *outcome) { h.Requests = append(h.Requests, s.Requests[2]) },
		"one request too many":  func(s, h *outcome) { h.Requests = append(h.Requests, s.Requests[0], s.Requests[0]) },
		"a request of its own":  func(_, h *outcome) { h.Requests = append(h.Requests, seen{Registry: "r", Path: "/v2/"}) },
		"a request not made":    func(_, h *outcome) { h.Requests = nil },
		"a code that says none": func(_, h *outcome) { h.Class, h.Code = classOther, "Unknown" },
	} {
		g.Expect(judged(c, edit)).NotTo(BeEmpty(), name)
	}
	secret := c
	secret.Secret = "r"
	g.Expect(judged(secret, func(_, _ *outcome) {})).To(ContainElement(ContainSubstring("credentials were sent")))

	meant := testCase{Want: classOK, Differs: &difference{Want: classBlocked, Absent: "r"}}
	refused := func(_, h *outcome) { *h = outcome{Class: classBlocked, Code: "Unimplemented"} }
	g.Expect(judged(meant, refused)).To(BeEmpty())
	g.Expect(judged(meant, func(_, _ *outcome) {})).NotTo(BeEmpty(), "a documented difference is asserted")
	asked := func(s, h *outcome) { refused(s, h); h.Requests = s.Requests[:1] }
	g.Expect(judged(meant, asked)).To(ContainElement("husk asked r"))
}

func TestScope(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	for in, want := range map[string]string{
		"r:5000/app": "r:5000/app", "r:5000/app:v1": "r:5000/app", "r/app@sha256:00": "r/app", "r:1/app:v1@sha256:00": "r:1/app",
	} {
		g.Expect(scope(in)).To(Equal(want))
	}
}

func TestLeaks(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	dir := t.TempDir()
	g.Expect(os.Mkdir(filepath.Join(dir, "log"), 0o700)).To(Succeed())
	w := &world{rig: &rig.Rig{Dir: dir}}
	for text, want := range map[string]int{
		"pull registry/app: denied": 0,
		"with alice-secret":         1,
		"Basic " + base64.StdEncoding.EncodeToString([]byte("alice:alice-secret")): 1,
	} {
		g.Expect(os.WriteFile(filepath.Join(dir, "log", "husk.log"), []byte(text), 0o600)).To(Succeed())
		g.Expect(w.leaks().Problems).To(HaveLen(want), text)
	}
}
