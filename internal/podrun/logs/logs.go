// Package logs keeps what a container writes in files of the CRI's log format, as kubelet
// reads them: TIME STREAM F|P TEXT. What a container may write there is bounded.
package logs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	// maxFile bounds a file, in bytes; one older is kept beside it. A container that writes
	// without end must not fill the node's disk.
	maxFile = 32 << 20
	// maxLine bounds the text of one entry: a line without an end is cut into parts.
	maxLine  = 16 << 10
	fileName = "ctr.log"
	fileMode = 0o600
	timeForm = time.RFC3339Nano
	fullTag  = 'F'
	partTag  = 'P'
)

// Stream is one of a container's outputs.
type Stream string

// The outputs.
const (
	Stdout Stream = "stdout"
	Stderr Stream = "stderr"
)

// Writer writes the log of one container, which no other process writes.
type Writer struct {
	dir   string
	limit int64

	mu   sync.Mutex
	file *os.File
	size int64
	err  error
}

// Create begins a log in dir, after what is there of an earlier run.
func Create(dir string) (*Writer, error) {
	w := &Writer{dir: dir, limit: maxFile}
	if err := w.open(); err != nil {
		return nil, err
	}
	return w, nil
}

func (w *Writer) open() error {
	file, err := os.OpenFile(filepath.Join(w.dir, fileName), os.O_WRONLY|os.O_CREATE|os.O_APPEND, fileMode)
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	info, err := file.Stat()
	if err != nil {
		return errors.Join(fmt.Errorf("open the log: %w", err), file.Close())
	}
	w.file, w.size = file, info.Size()
	return nil
}

// Stream returns where one output is written. Each is written by one goroutine. A write
// never fails: a container must not stop because its log does; see [Writer.Close].
func (w *Writer) Stream(s Stream) *Output { return &Output{w: w, stream: s} }

// Close ends the log and returns the first error that there was in writing it.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return errors.Join(w.err, w.file.Close())
}

// add writes one entry. The file is changed for a new one when it is full.
func (w *Writer) add(entry []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return
	}
	if w.size+int64(len(entry)) > w.limit {
		if w.err = w.rotate(); w.err != nil {
			return
		}
	}
	n, err := w.file.Write(entry)
	w.size += int64(n)
	w.err = err
}

func (w *Writer) rotate() error {
	path := filepath.Join(w.dir, fileName)
	if err := os.Rename(path, path+".1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("rotate the log: %w", err)
	}
	old := w.file
	if err := w.open(); err != nil {
		w.file = old
		return err
	}
	return old.Close()
}

// Output is one output in the log.
type Output struct {
	w      *Writer
	stream Stream
	part   []byte
}

// Write implements io.Writer.
func (o *Output) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		line, after, whole := bytes.Cut(rest, []byte{'\n'})
		if room := maxLine - len(o.part); len(line) > room {
			o.part = append(o.part, rest[:room]...)
			rest = rest[room:]
			o.flush(partTag)
			continue
		}
		o.part = append(o.part, line...)
		rest = after
		if whole {
			o.flush(fullTag)
		}
	}
	return len(p), nil
}

// End writes what came after the last end of a line.
func (o *Output) End() {
	if len(o.part) > 0 {
		o.flush(partTag)
	}
}

func (o *Output) flush(tag byte) {
	entry := make([]byte, 0, len(o.part)+len(timeForm)+len(o.stream)+4)
	entry = time.Now().AppendFormat(entry, timeForm)
	entry = append(entry, ' ')
	entry = append(entry, o.stream...)
	entry = append(entry, ' ', tag, ' ')
	entry = append(entry, o.part...)
	entry = append(entry, '\n')
	o.part = o.part[:0]
	o.w.add(entry)
}
