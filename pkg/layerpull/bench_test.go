package layerpull

import (
	"archive/tar"
	"bufio"
	"bytes"
	stdgzip "compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/klauspost/compress/gzip"
)

// benchLayer is an archive that compresses to about two fifths.
func benchLayer(b *testing.B, files, size int) []byte {
	b.Helper()
	random := rand.New(rand.NewPCG(1, 2))
	words := make([][]byte, 1024)
	for i := range words {
		words[i] = make([]byte, 4+random.IntN(12))
		for j := range words[i] {
			words[i][j] = byte('a' + random.IntN(26))
		}
	}
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for n := range files {
		content := make([]byte, 0, size+16)
		for len(content) < size {
			if random.IntN(4) == 0 {
				content = append(content, byte(random.Uint32()), byte(random.Uint32()), byte(random.Uint32()))
			}
			content = append(content, words[random.IntN(1024)]...)
		}
		hdr := &tar.Header{Name: fmt.Sprintf("d%d/f%d", n/100, n), Typeflag: tar.TypeReg, Size: int64(size), Mode: 0o644}
		if err := tw.WriteHeader(hdr); err != nil {
			b.Fatal(err)
		}
		if _, err := tw.Write(content[:size]); err != nil {
			b.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		b.Fatal(err)
	}
	return buf.Bytes()
}

// BenchmarkInflate is why gzip is klauspost's.
func BenchmarkInflate(b *testing.B) {
	plain := benchLayer(b, 64, 1<<20)
	packed := gzipped(plain)
	for name, open := range map[string]func(io.Reader) (io.Reader, error){
		"standard":  func(r io.Reader) (io.Reader, error) { return stdgzip.NewReader(r) },
		"klauspost": func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) },
		"klauspost, buffered": func(r io.Reader) (io.Reader, error) {
			return gzip.NewReader(bufio.NewReaderSize(struct{ io.Reader }{r}, peekBytes))
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(plain)))
			for b.Loop() {
				r, err := open(bytes.NewReader(packed))
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.Copy(struct{ io.Writer }{io.Discard}, r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkPipeline is why inflating runs in a goroutine of its own, and hashing
// with the writes.
func BenchmarkPipeline(b *testing.B) {
	plain := benchLayer(b, 64, 1<<20)
	packed := gzipped(plain)
	for name, build := range map[string]func(io.Reader, *buffers) (io.Reader, func()){
		"one goroutine": func(r io.Reader, _ *buffers) (io.Reader, func()) { return hashing(r), func() {} },
		"hash with the writes": func(r io.Reader, pool *buffers) (io.Reader, func()) {
			a := readAhead(r, pool)
			return hashing(a), a.close
		},
		"hash with inflate": func(r io.Reader, pool *buffers) (io.Reader, func()) {
			a := readAhead(hashing(r), pool)
			return a, a.close
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(plain)))
			pool := &buffers{}
			for b.Loop() {
				z, err := gzip.NewReader(bytes.NewReader(packed))
				if err != nil {
					b.Fatal(err)
				}
				r, done := build(z, pool)
				unpackForBench(b, r)
				done()
			}
		})
	}
}

func hashing(r io.Reader) io.Reader { return io.TeeReader(r, sha256.New()) }

// BenchmarkUnpack is the cost of the files alone.
func BenchmarkUnpack(b *testing.B) {
	for name, shape := range map[string][2]int{"64 of 1 MiB": {64, 1 << 20}, "20000 of 1 KB": {20_000, 1000}} {
		b.Run(name, func(b *testing.B) {
			data := benchLayer(b, shape[0], shape[1])
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				unpackForBench(b, bytes.NewReader(data))
			}
		})
	}
}

func unpackForBench(b *testing.B, r io.Reader) {
	b.Helper()
	u := newUnpacker(b.TempDir(), Limits{})
	if _, err := u.unpack(b.Context(), r); err != nil {
		b.Fatal(err)
	}
}

// newUnpacker is one without a pull around it.
func newUnpacker(dir string, limits Limits) *unpacker {
	room := &atomic.Int64{}
	room.Store(math.MaxInt64)
	return &unpacker{dir: dir, limits: limits.withDefaults(), room: room, buf: make([]byte, bufferBytes)}
}
