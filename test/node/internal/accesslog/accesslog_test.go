package accesslog_test

import (
	"strings"
	"testing"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/test/node/internal/accesslog"
)

const (
	getBlob  = `10.213.1.7 - - [23/Nov/2026:12:00:01 +0000] "GET /v2/app/blobs/sha256:ab HTTP/1.1" 200 1234 "" "containers/5.35.0 (github.com/containers/image)"`
	headBlob = `10.213.1.1 - alice [23/Nov/2026:12:00:02 +0000] "HEAD /v2/app/blobs/sha256:cd HTTP/1.1" 404 0 "" "a \"quoted\" agent"`
)

func TestParse(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		line string
		want accesslog.Entry
	}{
		"get": {getBlob, accesslog.Entry{
			Method: "GET", Path: "/v2/app/blobs/sha256:ab", Remote: "10.213.1.7", Status: 200, Bytes: 1234,
			Time: "23/Nov/2026:12:00:01 +0000", Agent: "containers/5.35.0 (github.com/containers/image)",
		}},
		"head with a user and an escaped agent": {headBlob, accesslog.Entry{
			Method: "HEAD", Path: "/v2/app/blobs/sha256:cd", Remote: "10.213.1.1", Status: 404,
			Time: "23/Nov/2026:12:00:02 +0000", Agent: `a \"quoted\" agent`,
		}},
		"ipv6 and no size": {`fd00::2 - - [x] "GET /v2/ HTTP/2.0" 304 - "" ""`, accesslog.Entry{
			Method: "GET", Path: "/v2/", Remote: "fd00::2", Status: 304, Time: "x",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			got, err := accesslog.Parse(c.line)
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(got).To(Equal(c.want))
		})
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for name, l := range map[string]string{
		"empty":        "",
		"a log line":   `time="2026-11-23T12:00:00Z" level=info msg="listening"`,
		"no status":    `10.0.0.1 - - [x] "GET /v2/ HTTP/1.1" - 2 "" ""`,
		"trailing":     getBlob + " more",
		"size too big": `10.0.0.1 - - [x] "GET /v2/ HTTP/1.1" 200 99999999999999999999 "" ""`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := accesslog.Parse(l)
			NewWithT(t).Expect(err).To(HaveOccurred())
		})
	}
}

func TestReadGoesOnWhereItStopped(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	whole := getBlob + "\n" + headBlob + "\n"
	cut := len(getBlob) + 1 + 10 // the second line is still being written

	first, err := accesslog.Read(strings.NewReader(whole[:cut]), 0)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(first).To(HaveLen(1))

	since := first[0].End
	rest, err := accesslog.Read(strings.NewReader(whole[since:]), since)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(rest).To(HaveLen(1))
	g.Expect(rest[0].Method).To(Equal("HEAD"))
	g.Expect(rest[0].End).To(BeEquivalentTo(len(whole)))
}

func TestReadFailsRatherThanSkips(t *testing.T) {
	t.Parallel()
	for name, log := range map[string]string{
		"a line that is none": getBlob + "\nnonsense\n",
		"an endless line":     strings.Repeat("x", 1<<17) + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := accesslog.Read(strings.NewReader(log), 0)
			NewWithT(t).Expect(err).To(HaveOccurred())
		})
	}
}
