package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"sync"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
)

// faultFile has the faults of the moment, one a line as in --fault: a test makes the
// registry fail, and heals it, by writing the file. No file is no fault. A fault that
// is limited ("*2") counts from when the file has been changed.
type faultFile struct {
	path string

	mu     sync.Mutex
	text   []byte
	faults []faultFlag
}

// matches implements [fakeregistry.Match].
func (f *faultFile) matches(req *http.Request) bool { return f.find(req) != nil }

// serve implements [fakeregistry.Fault].
func (f *faultFile) serve(w http.ResponseWriter, req *http.Request, r *fakeregistry.Registry) {
	fault := f.find(req)
	if fault == nil { // healed in between
		fault = fakeregistry.Times(0, nil)
	}
	fault(w, req, r)
}

// find returns the last fault that matches.
func (f *faultFile) find(req *http.Request) fakeregistry.Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.read(); err != nil {
		return fakeregistry.Status(http.StatusTeapot, err.Error())
	}
	for i := len(f.faults) - 1; i >= 0; i-- {
		if f.faults[i].match(req) {
			return f.faults[i].fault
		}
	}
	return nil
}

// read reads the file again if it has changed.
func (f *faultFile) read() error {
	text, err := os.ReadFile(f.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if bytes.Equal(text, f.text) {
		return nil
	}
	var faults []faultFlag
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		fault, err := parseFault(line)
		if err != nil {
			return fmt.Errorf("%s: %w", f.path, err)
		}
		faults = append(faults, fault)
	}
	f.text, f.faults = text, faults
	return nil
}
