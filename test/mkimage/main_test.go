package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/testkit/images"
)

// Not parallel: urfave/cli sets up flags that all apps of a process share.

func TestCommandLine(t *testing.T) {
	g := NewWithT(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	run := func(args ...string) error { return app().RunContext(t.Context(), append([]string{"mkimage"}, args...)) }

	g.Expect(os.WriteFile(at("busybox"), []byte("binary"), 0o755)).To(Succeed())
	g.Expect(run("keygen", at("keys"))).To(Succeed())
	g.Expect(run("build", "--output", "oci:"+at("img")+":v1", "--summary", at("summary.json"), "--busybox", at("busybox"),
		"--user", "web", "--passwd", "web:x:1:1::/:/bin/sh", "--env", "A=b,c", "--cmd", "sleep", "--cmd", "1", "--label", "k=v",
		"--layer", "/secret=MARKER", "--layer-random", "1KiB", "--layer", "/copy@"+at("busybox"),
		"--encrypt-key", filepath.Join(at("keys"), images.PublicKeyFile))).To(Succeed())

	data, err := os.ReadFile(at("summary.json"))
	g.Expect(err).NotTo(HaveOccurred())
	var summary images.Summary
	g.Expect(json.Unmarshal(data, &summary)).To(Succeed())
	g.Expect(summary.Instances).To(HaveLen(1))
	g.Expect(summary.Instances[0].Layers).To(HaveLen(4))
	g.Expect(summary.Instances[0].Encrypted).To(Equal(4))

	config, err := os.ReadFile(filepath.Join(at("img"), "blobs", "sha256", summary.Instances[0].Config.Encoded()))
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(string(config)).To(ContainSubstring(`"User":"web","Env":["A=b,c"],"Cmd":["sleep","1"],"Labels":{"k":"v"}`))

	g.Expect(run("pause", "--output", "oci:"+at("img")+":pause", "--summary", at("p.json"), "--binary", at("busybox"))).To(Succeed())
	g.Expect(run("artifact", "--output", "oci:"+at("img")+":artifact", "--summary", at("a.json"))).To(Succeed())
}

func TestBadArguments(t *testing.T) {
	for _, args := range [][]string{
		{"build", "--output", "docker:x"},
		{"build", "--output", "oci:x:y", "--layer", "relative=x"},
		{"build", "--output", "oci:x:y", "--label", "novalue"},
		{"build", "--output", "oci:x:y", "--index", "linux"},
		{"build", "--output", "oci:x:y", "--layer-random", "many"},
		{"build", "--output", "oci:x:y", "--encrypt-layer", "1"},
		{"keygen"},
		{"push", "oci:x:y"},
	} {
		err := app().RunContext(t.Context(), append([]string{"mkimage"}, args...))
		NewWithT(t).Expect(err).To(HaveOccurred(), "%q", args)
	}
}
