package main

import (
	"testing"

	. "github.com/onsi/gomega"
)

// TestJudgeLayers holds the goals of issue 4: no slower than the peer and 0.8 of the
// floor with one layer; twice as fast, and near twice that of the floor, with many.
func TestJudgeLayers(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		layers, cpus int
		peer, floor  float64 // seconds; layerpull takes 10
		rss          int64
		reached      bool
	}{
		"one layer":                       {1, 2, 10, 8, 1000, true},
		"one layer, slower than the peer": {1, 2, 9.9, 8, 1000, false},
		"one layer, far from the floor":   {1, 2, 10, 7.9, 1000, false},
		"many layers":                     {8, 2, 20, 15, 1000, true},
		"many layers, less than twice":    {8, 2, 19, 15, 1000, false},
		"many layers, one core's floor":   {8, 2, 20, 14, 1000, false},
		"many layers, on one core":        {8, 1, 20, 8, 1000, true},
		"memory":                          {8, 2, 20, 15, goalRSSKiB, false},
	} {
		g := NewWithT(t)
		own := LayersCase{Layers: c.layers, Runs: map[string]LayersRun{
			"layerpull": {Seconds: 10, PeakRSSKiB: c.rss}, "copy": {Seconds: c.peer}, "floor": {Seconds: c.floor},
		}}
		own.judge(c.cpus)
		g.Expect(own.Reached).To(Equal(c.reached), name)
		g.Expect(own.PeerRatio).To(BeNumerically("~", c.peer/10, 1e-9), name)
	}
}

// TestJudgePodStart takes the medians of rounds and of steps, and the ratio so that
// more than 1 means that Husk is faster.
func TestJudgePodStart(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	var pair PodStartPair
	watch := pair.Husk.start()
	watch.lap("sandbox")
	watch.lap("pull")
	watch.stop()
	g.Expect(pair.Husk.Milliseconds).To(HaveLen(1))
	pair.Husk.Milliseconds = []float64{1, 200, 100}
	pair.Husk.steps["pull"] = []float64{7, 5, 6}
	pair.StockCRIO.Milliseconds = []float64{300, 5, 200}
	pair.judge()
	g.Expect(pair.Ratio).To(BeNumerically("==", 2))
	g.Expect(pair.Husk.StepsMS).To(And(HaveKeyWithValue("pull", 6.0), HaveKey("sandbox")))
}
