package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"testing"

	. "github.com/onsi/gomega"
)

func TestMain(m *testing.M) {
	child, err := runLayersChild(context.Background(), os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "layers child:", err)
		os.Exit(1)
	}
	if child {
		os.Exit(0)
	}
	os.Exit(m.Run())
}

var (
	layersScale  = flag.Int("layers-scale", 100, "divide the layer benchmark's images by this")
	layersRounds = flag.Int("layers-rounds", 1, "rounds of the layer benchmark")
	layersOnly   = flag.String("layers-only", "", "the one image of the layer benchmark")
	layersTmpfs  = flag.Bool("layers-tmpfs", true, "stores on tmpfs")
)

// TestMeasureLayers runs the comparison at a small size: every engine must be
// able to pull every image.
func TestMeasureLayers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: the stores hold files of other owners")
	}
	if _, err := exec.LookPath("skopeo"); err != nil {
		t.Skip("skopeo is not installed")
	}
	g := NewWithT(t)
	result, err := measureLayers(t.Context(), layersOptions{scale: *layersScale, rounds: *layersRounds, only: *layersOnly, scratch: t.TempDir(), tmpfs: *layersTmpfs})
	g.Expect(err).NotTo(HaveOccurred())
	data, err := json.MarshalIndent(result, "", " ")
	g.Expect(err).NotTo(HaveOccurred())
	t.Logf("%s", data)
	layers, ok := result.(LayersResult)
	g.Expect(ok).To(BeTrue())
	if *layersOnly == "" {
		g.Expect(layers.Cases).To(HaveLen(len(layerShapes(1)) * len(layerForms())))
	}
	for _, c := range layers.Cases {
		g.Expect(c.UnpackedBytes).To(BeNumerically(">", c.StoredBytes), c.Image)
		for engine, run := range c.Runs {
			g.Expect(run.Seconds).To(BeNumerically(">", 0), engine)
		}
		g.Expect(c.Runs).To(HaveLen(4))
		g.Expect(c.Runs["layerpull"].PeakRSSKiB).To(BeNumerically("<", goalRSSKiB), "%s, %s", c.Image, c.Form)
	}
}
