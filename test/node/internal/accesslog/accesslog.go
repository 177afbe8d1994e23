// Package accesslog reads docker-registry's own access log: the Apache combined format that it writes to its
// standard output. What a test says about who fetched which blob rests on this log and on nothing else.
package accesslog

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
)

// maxLine bounds one line of the log: request paths and user agents come from whoever sends a request.
const maxLine = 64 << 10

// Entry is one request that the registry answered.
type Entry struct {
	Method string `json:"method"`
	Path   string `json:"path"`   // with the query, as requested
	Remote string `json:"remote"` // the client's IP address, without a port
	Status int    `json:"status"`
	Bytes  int64  `json:"bytes"` // of the response body
	Time   string `json:"time"`  // as logged: 02/Jan/2006:15:04:05 -0700
	Agent  string `json:"agent"` // the User-Agent header
	End    int64  `json:"end"`   // offset in the log just after this line: where a later reader goes on
}

var line = regexp.MustCompile(
	`^(\S+) \S+ \S+ \[([^\]]*)\] "([A-Z]+) (\S+) HTTP/[0-9.]+" (\d{3}) (\d+|-) "(?:[^"\\]|\\.)*" "((?:[^"\\]|\\.)*)"$`)

// errNotEntry says that a line is no access-log line.
var errNotEntry = errors.New("not an access log line")

// Parse reads one line, without its newline.
func Parse(s string) (Entry, error) {
	m := line.FindStringSubmatch(s)
	if m == nil {
		return Entry{}, fmt.Errorf("%w: %q", errNotEntry, s)
	}
	status, err := strconv.Atoi(m[5])
	if err != nil {
		return Entry{}, fmt.Errorf("status in %q: %w", s, err)
	}
	var size int64
	if m[6] != "-" {
		if size, err = strconv.ParseInt(m[6], 10, 64); err != nil {
			return Entry{}, fmt.Errorf("size in %q: %w", s, err)
		}
	}
	return Entry{Remote: m[1], Time: m[2], Method: m[3], Path: m[4], Status: status, Bytes: size, Agent: m[7]}, nil
}

// Read parses the whole lines of r, which starts at offset since of the log. A last line without its newline is
// still being written: it is left for the next reader. Any other line that does not parse is an error, so that
// no request goes unseen.
func Read(r io.Reader, since int64) ([]Entry, error) {
	var entries []Entry
	br := bufio.NewReaderSize(r, maxLine)
	at := since
	for {
		b, err := br.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			return entries, nil
		}
		if err != nil {
			return nil, fmt.Errorf("access log at offset %d: %w", at, err)
		}
		at += int64(len(b))
		e, err := Parse(string(b[:len(b)-1]))
		if err != nil {
			return nil, err
		}
		e.End = at
		entries = append(entries, e)
	}
}
