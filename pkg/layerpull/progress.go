package layerpull

import (
	"sync"
	"sync/atomic"
	"time"
)

// progressStep is the time between two reports of a pull's progress.
const progressStep = 100 * time.Millisecond

// Progress says how far a pull is. At the end of one that succeeds LayersDone is
// Layers and BytesDone is Bytes. Its JSON is an interface for scripts.
type Progress struct {
	// Layers counts the layers of the image, and LayersDone those that are in the
	// store, whoever brought them.
	Layers     int `json:"layers"`
	LayersDone int `json:"layersDone"`
	// Bytes are those of the layers that the store did not have when the pull began,
	// as the registry has them, and BytesDone what has come of them.
	Bytes     int64 `json:"bytes"`
	BytesDone int64 `json:"bytesDone"`
}

// meter counts what a pull does and reports it from one goroutine, so that the
// layers' streams never wait for who listens.
type meter struct {
	report       func(Progress)
	total        Progress // what the counters begin with
	layers       atomic.Int64
	bytes        atomic.Int64
	stop         chan struct{}
	reports      sync.WaitGroup
	reportedLast Progress
}

// newMeter reports the beginning and then whatever changes, until finish. report may
// be nil.
func newMeter(report func(Progress), total Progress) *meter {
	m := &meter{report: report, total: total, stop: make(chan struct{})}
	if report == nil {
		return m
	}
	m.tell()
	m.reports.Go(func() {
		tick := time.NewTicker(progressStep)
		defer tick.Stop()
		for {
			select {
			case <-m.stop:
				return
			case <-tick.C:
				if m.now() != m.reportedLast {
					m.tell()
				}
			}
		}
	})
	return m
}

func (m *meter) now() Progress {
	p := m.total
	p.LayersDone += int(m.layers.Load())
	p.BytesDone += m.bytes.Load()
	return p
}

func (m *meter) tell() {
	m.reportedLast = m.now()
	m.report(m.reportedLast)
}

// finish makes the last report and ends them; there is none after its return.
func (m *meter) finish() {
	close(m.stop)
	m.reports.Wait()
	if m.report != nil {
		m.tell()
	}
}
