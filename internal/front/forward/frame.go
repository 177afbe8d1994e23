package forward

import (
	"bytes"
	"fmt"

	"google.golang.org/grpc/mem"
)

// Frame is one gRPC message as it stood on the wire. Its bytes are not copied on
// their way through, so a frame may be sent once and not looked at afterwards.
type Frame struct{ buffers mem.BufferSlice }

// NewFrame returns the frame with the given message. message must not be changed
// afterwards.
func NewFrame(message []byte) *Frame {
	return &Frame{mem.BufferSlice{mem.SliceBuffer(message)}}
}

// Bytes returns a copy of the message, never nil, and releases the frame.
func (f *Frame) Bytes() []byte {
	message := make([]byte, f.buffers.Len())
	f.buffers.CopyTo(message)
	f.buffers.Free()
	f.buffers = nil
	return message
}

// Contains reports whether part is in the message, without copying it.
func (f *Frame) Contains(part []byte) bool {
	overlap := len(part) - 1
	var seam []byte // the end of what was searched, then the start of what follows
	for _, buffer := range f.buffers {
		data := buffer.ReadOnlyData()
		seam = append(seam, data[:min(len(data), overlap)]...)
		if bytes.Contains(data, part) || bytes.Contains(seam, part) {
			return true
		}
		if len(data) >= overlap {
			seam = append(seam[:0], data[len(data)-overlap:]...)
		} else {
			seam = seam[max(0, len(seam)-overlap):]
		}
	}
	return false
}

// codec hands frames to gRPC and takes them from it, untouched.
type codec struct{}

// Marshal gives up the frame's buffers to gRPC, which frees them.
func (codec) Marshal(v any) (mem.BufferSlice, error) {
	f, ok := v.(*Frame)
	if !ok {
		return nil, fmt.Errorf("send raw frame: unexpected type %T", v)
	}
	buffers := f.buffers
	f.buffers = nil
	return buffers, nil
}

// Unmarshal keeps a reference to the received buffers.
func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	f, ok := v.(*Frame)
	if !ok {
		return fmt.Errorf("receive raw frame: unexpected type %T", v)
	}
	data.Ref()
	f.buffers = data
	return nil
}

// Name is empty so that the content type stays the plain "application/grpc":
// CRI-O's connection multiplexer turns any other away.
func (codec) Name() string { return "" }
