package logs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// followPoll is how often a log that is followed is looked at for more.
const followPoll = 100 * time.Millisecond

// maxEntry bounds one entry in the file, in bytes: its text, and what stands before it.
const maxEntry = maxLine + 256

// ReadOptions say what to read of a log.
type ReadOptions struct {
	// Tail is how many of the last lines to begin with. Negative: all.
	Tail int
	// Timestamps puts the time before each line.
	Timestamps bool
	// Ended says whether the container has; what it wrote before is then read to its end.
	// Nil: the log is read as it is.
	Ended func() (bool, error)
	// Stdout and Stderr are where the outputs go.
	Stdout, Stderr io.Writer
}

// Read prints the log in dir. Where there is none it prints nothing. It returns when ctx ends.
func Read(ctx context.Context, dir string, o ReadOptions) error {
	path := filepath.Join(dir, fileName)
	r := reader{options: o, starts: map[Stream]bool{Stdout: true, Stderr: true}}
	old, err := open(path + ".1")
	if err != nil {
		return err
	}
	now, err := open(path)
	if err != nil {
		return errors.Join(err, closeAll(old))
	}
	defer func() { _ = closeAll(old, now) }() // only read; now may be another one by then
	if o.Tail >= 0 {
		if r.skip, err = countTail(o.Tail, old, now); err != nil {
			return err
		}
	}
	if err := r.copy(old); err != nil {
		return err
	}
	if o.Ended == nil {
		return r.copy(now)
	}
	tick := time.NewTicker(followPoll)
	defer tick.Stop()
	for {
		ended, err := o.Ended() // before the file is read: what comes later is of no container
		if err != nil {
			return err
		}
		if err := r.copy(now); err != nil {
			return err
		}
		if next := rotated(path, now); next != nil {
			err := r.copy(now) // what came before it was changed
			_ = closeAll(now)
			now, r.rest = next, nil
			if err != nil {
				return err
			}
			continue
		}
		if ended {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// open returns nil where there is no file.
func open(path string) (*os.File, error) {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return file, err
}

func closeAll(files ...*os.File) error {
	var errs []error
	for _, f := range files {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// rotated returns the file that took the place of now, or nil.
func rotated(path string, now *os.File) *os.File {
	next, err := open(path)
	if err != nil || next == nil {
		return nil
	}
	there, err := next.Stat()
	if err == nil && now != nil {
		if mine, err := now.Stat(); err == nil && os.SameFile(there, mine) {
			_ = next.Close()
			return nil
		}
	}
	return next
}

// countTail returns how many lines to pass over so that the last n remain.
func countTail(n int, files ...*os.File) (int, error) {
	lines := 0
	for _, f := range files {
		if f == nil {
			continue
		}
		scan := bufio.NewScanner(f)
		scan.Buffer(nil, maxEntry)
		for scan.Scan() {
			if _, _, tag, _ := parse(scan.Bytes()); tag == fullTag {
				lines++
			}
		}
		if err := scan.Err(); err != nil {
			return 0, err
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return 0, err
		}
	}
	return max(0, lines-n), nil
}

// reader prints entries.
type reader struct {
	options ReadOptions
	// skip is how many lines are still to be passed over.
	skip int
	// starts says of each output that its next entry begins a line.
	starts map[Stream]bool
	// rest is the beginning of an entry that is being written.
	rest []byte
}

// copy prints what there is of a file from where it was left.
func (r *reader) copy(f *os.File) error {
	if f == nil {
		return nil
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := f.Read(buf)
		data := slices.Concat(r.rest, buf[:n])
		for {
			entry, after, whole := bytes.Cut(data, []byte{'\n'})
			if !whole {
				break
			}
			if err := r.print(entry); err != nil {
				return err
			}
			data = after
		}
		r.rest = bytes.Clone(data)
		if len(r.rest) > maxEntry {
			return errors.New("read the log: an entry is too long: not Husk's")
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (r *reader) print(entry []byte) error {
	when, stream, tag, text := parse(entry)
	if tag == 0 {
		return nil // not an entry: somebody else wrote into the file
	}
	if r.skip > 0 {
		if tag == fullTag {
			r.skip--
		}
		return nil
	}
	to := r.options.Stdout
	if stream == Stderr {
		to = r.options.Stderr
	}
	var line []byte
	if r.options.Timestamps && r.starts[stream] {
		line = append(append(line, when...), ' ')
	}
	line = append(line, text...)
	if tag == fullTag {
		line = append(line, '\n')
	}
	r.starts[stream] = tag == fullTag
	_, err := to.Write(line)
	return err
}

// parse cuts an entry. The tag is 0 for what is none.
func parse(entry []byte) (when []byte, stream Stream, tag byte, text []byte) {
	parts := bytes.SplitN(entry, []byte{' '}, 4)
	if len(parts) != 4 || len(parts[2]) != 1 {
		return nil, "", 0, nil
	}
	stream, tag = Stream(parts[1]), parts[2][0]
	if (stream != Stdout && stream != Stderr) || (tag != fullTag && tag != partTag) {
		return nil, "", 0, nil
	}
	return parts[0], stream, tag, parts[3]
}
