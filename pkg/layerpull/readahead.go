package layerpull

import (
	"io"
	"sync"
)

// buffers recycles the buffers of one pull, so that many small layers do not
// each cost the garbage collector a ring. Their number is bounded by the rings.
type buffers struct{ pool sync.Pool }

func (b *buffers) get() []byte {
	if buf, ok := b.pool.Get().(*[]byte); ok {
		return *buf
	}
	return make([]byte, bufferBytes)
}

func (b *buffers) put(buf []byte) {
	buf = buf[:cap(buf)]
	b.pool.Put(&buf)
}

// chunk is what one filling of a buffer got; err ends the stream.
type chunk struct {
	data []byte
	err  error
}

// ahead reads a stream in a goroutine of its own, a bounded ring of buffers
// ahead of its reader: the two ends of a layer's pass run on two cores.
type ahead struct {
	pool *buffers
	full chan chunk
	free chan []byte
	stop chan struct{}
	done chan struct{}

	data, buf []byte // what is unread of buf
	err       error
}

// readAhead begins to read src. The caller closes the result before it uses src
// again.
func readAhead(src io.Reader, pool *buffers) *ahead {
	a := &ahead{
		pool: pool, full: make(chan chunk, ringBuffers), free: make(chan []byte, ringBuffers),
		stop: make(chan struct{}), done: make(chan struct{}),
	}
	for range ringBuffers {
		a.free <- nil // a short stream needs no more than one of them
	}
	go a.run(src)
	return a
}

func (a *ahead) run(src io.Reader) {
	defer close(a.done)
	defer close(a.full)
	for {
		var buf []byte
		select {
		case buf = <-a.free:
		case <-a.stop:
			return
		}
		if buf == nil {
			buf = a.pool.get()
		}
		n, err := fill(src, buf)
		// There are no more chunks than the channel has room for.
		a.full <- chunk{data: buf[:n], err: err}
		if err != nil {
			return
		}
	}
}

// fill reads until buf is full or the stream ends; unlike [io.ReadFull] it
// gives the stream's own error with what came before it.
func fill(src io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = src.Read(buf[n:])
		n += m
	}
	return n, err
}

// Read implements [io.Reader].
func (a *ahead) Read(p []byte) (int, error) {
	for len(a.data) == 0 {
		if a.err != nil {
			return 0, a.err
		}
		if a.buf != nil {
			a.free <- a.buf
		}
		c, ok := <-a.full
		if !ok {
			c.err = io.ErrClosedPipe
		}
		a.data, a.buf, a.err = c.data, c.data[:cap(c.data)], c.err
	}
	n := copy(p, a.data)
	a.data = a.data[n:]
	return n, nil
}

// close ends the reading and waits until src is no longer in use.
func (a *ahead) close() {
	close(a.stop)
	<-a.done
	if a.buf != nil {
		a.pool.put(a.buf)
	}
	for c := range a.full {
		a.pool.put(c.data)
	}
	close(a.free)
	for buf := range a.free {
		if buf != nil {
			a.pool.put(buf)
		}
	}
	a.data, a.buf, a.err = nil, nil, io.ErrClosedPipe
}
