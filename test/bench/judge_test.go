package main

import (
	"os"
	"testing"
	"time"

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

// TestJudgeBundlegen: the goal is on the median of the spec alone.
func TestJudgeBundlegen(t *testing.T) {
	t.Parallel()
	for median, reached := range map[float64]bool{199.9: true, goalSpecMicroseconds: false, 1000: false} {
		result := BundlegenResult{Spec: BundlegenCost{MedianUS: median}, Store: BundlegenCost{MedianUS: 1e6}}
		result.judge()
		NewWithT(t).Expect(result.GoalReached).To(Equal(reached), "%v", median)
	}
}

// TestCostOf leaves out what comes after a call, and ends with the first that fails.
func TestCostOf(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	calls, afters := 0, 0
	cost, err := costOf(10, func() error { calls++; return nil }, func() error { afters++; return nil })
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect([]int{calls, afters, cost.Rounds}).To(Equal([]int{10 + bundlegenWarmUp, 10 + bundlegenWarmUp, 10}))
	g.Expect(cost.P99US).To(BeNumerically(">=", cost.MedianUS))
	_, err = costOf(10, func() error { return os.ErrClosed }, nil)
	g.Expect(err).To(MatchError(os.ErrClosed))
}

// TestJudgeRun takes the medians, and the ratio so that more than 1 means that Husk is faster.
func TestJudgeRun(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	pair := RunPair{Husk: RunTimes{Milliseconds: []float64{1, 200, 100}}, Podman: RunTimes{Milliseconds: []float64{300, 5, 200}}}
	pair.judge()
	g.Expect([]float64{pair.Husk.MedianMS, pair.Podman.MedianMS, pair.Ratio}).To(Equal([]float64{100, 200, 2}))
}

// TestFirstByte accepts only a command that prints the line and ends well, and times the
// first byte, not the end.
func TestFirstByte(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	sh := engine{program: "/bin/sh", global: []string{"-c"}}
	begin := time.Now()
	took, err := sh.firstByte(t.Context(), "echo ready; sleep 0.5")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(time.Since(begin) - took).To(BeNumerically(">=", 400*time.Millisecond))
	for script, says := range map[string]string{
		"echo ready; echo why >&2; exit 3": "why", "echo other": `printed "other`, "exit 0": "EOF", "echo ready; echo more": "printed",
	} {
		_, err := sh.firstByte(t.Context(), script)
		g.Expect(err).To(MatchError(ContainSubstring(says)), script)
	}
}

// TestInTurn: each is first as often as the other.
func TestInTurn(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	var order string
	for round := range 4 {
		g.Expect(inTurn(round, func() error { order += "a"; return nil }, func() error { order += "b"; return nil })).To(Succeed())
	}
	g.Expect(order).To(Equal("abbaabba"))
}
