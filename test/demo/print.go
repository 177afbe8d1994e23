package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
)

// printer talks to a person: with colour on a terminal, without elsewhere.
type printer struct {
	w     io.Writer
	color bool
	start time.Time
}

func newPrinter(f *os.File) *printer {
	info, err := f.Stat()
	terminal := err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("NO_COLOR") == ""
	return &printer{w: f, color: terminal, start: time.Now()}
}

func (p *printer) paint(code int, text string) string {
	if !p.color {
		return text
	}
	return "\x1b[" + strconv.Itoa(code) + "m" + text + "\x1b[0m"
}

const (
	bold  = 1
	red   = 31
	green = 32
	dim   = 2
)

func (p *printer) step(text string) {
	stamp := fmt.Sprintf("%5.1fs", time.Since(p.start).Seconds())
	_, _ = fmt.Fprintln(p.w, p.paint(dim, stamp), text)
}

func (p *printer) table(e *Evidence) {
	verdict := func(good bool, text string) string {
		if good {
			return p.paint(green, text)
		}
		return p.paint(red, text)
	}
	baseline := "pulled it, layers and all"
	if e.BaselineError != "" {
		baseline = "refuses it: " + reason(e.BaselineError)
	}
	rows := [][2]string{
		{"image", e.Image.Ref},
		{"", fmt.Sprintf("%d layers, %d encrypted, %d bytes", e.Image.Layers, e.Image.EncryptedLayers, e.Image.LayerBytes)},
		{"stock CRI-O", baseline},
		{"host asked registry", fmt.Sprintf("%d requests, %d bytes", len(e.Host.Requests), e.Host.Bytes)},
		{"  of them for layers", verdict(e.Host.LayerRequests == 0, strconv.Itoa(e.Host.LayerRequests))},
		{"pod " + e.Sandbox.PodIP, fmt.Sprintf("fetched %d layers itself", e.Sandbox.LayerRequests)},
		{"container", e.Container.State + ", user " + e.Container.User + ", says " + strconv.Quote(e.Container.Output)},
		{"  image_ref", verdict(e.Container.ImageRef != "", e.Container.ImageRef)},
		{"  image_id", verdict(e.Container.ImageID == e.Image.ImageID, e.Container.ImageID)},
		{"on the host's disk", fmt.Sprintf("%d bytes of manifest and config, %d layers", e.Storage.RecordBytes, e.Storage.LayersAdded)},
		{"  files with the secret", verdict(e.Storage.HostFilesWithSecret == 0, strconv.Itoa(e.Storage.HostFilesWithSecret))},
	}
	_, _ = fmt.Fprintln(p.w)
	for _, r := range rows {
		_, _ = fmt.Fprintf(p.w, "  %s %s\n", p.paint(bold, fmt.Sprintf("%-24s", r[0])), r[1])
	}
	_, _ = fmt.Fprintln(p.w)
}

// reason is what a chain of errors ends with.
func reason(text string) string {
	text = strings.TrimRight(text, ": ")
	if at := strings.LastIndex(text, ": "); at >= 0 {
		return text[at+2:]
	}
	return text
}
