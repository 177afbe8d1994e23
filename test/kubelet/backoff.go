package main

import (
	"fmt"
	"time"
)

// The image back-off of kubelet (backOffPeriod of pkg/kubelet/kubelet.go, MaxImageBackOff).
const (
	imageBackOffPeriod = 10 * time.Second
	maxImageBackOff    = 300 * time.Second
)

// backOff is an entry of flowcontrol.Backoff and of imageManager.prevPullErrMsg, for
// one image of one pod.
type backOff struct {
	LastUpdate time.Time     `json:"lastUpdate"`
	Delay      time.Duration `json:"delay"`
	Message    string        `json:"message"`
}

// inBackOff is IsInBackOffSinceUpdate: the error of a pull that is too early.
func (p *pod) inBackOff(image string, now time.Time) error {
	entry, ok := p.BackOff[image]
	if !ok || now.Sub(entry.LastUpdate) > 2*maxImageBackOff || now.Sub(entry.LastUpdate) >= entry.Delay {
		return nil
	}
	return &reasoned{errImagePullBackOff, fmt.Sprintf("Back-off pulling image %q: %s", image, entry.Message)}
}

// pullFailed is Backoff.Next, and what the next sync tells.
func (p *pod) pullFailed(image string, now time.Time, why *reasoned) {
	entry, ok := p.BackOff[image]
	if !ok || now.Sub(entry.LastUpdate) > 2*maxImageBackOff {
		entry.Delay = imageBackOffPeriod
	} else {
		entry.Delay = min(2*entry.Delay, maxImageBackOff)
	}
	entry.LastUpdate, entry.Message = now, why.Error()
	if p.BackOff == nil {
		p.BackOff = map[string]backOff{}
	}
	p.BackOff[image] = entry
}
