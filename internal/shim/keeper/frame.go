package keeper

import (
	"encoding/binary"
	"io"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// The frames of ttrpc (github.com/containerd/ttrpc PROTOCOL.md): a header of ten
// bytes (length, stream, type, flags), then the payload.
const (
	headerSize   = 10
	typeRequest  = 1
	typeResponse = 2
	typeData     = 3
	flagClosed   = 1
	// maxPayload is ttrpc's own limit on a message. Without it a peer could make
	// the keeper allocate 4 GiB by a header alone.
	maxPayload = 4 << 20
)

// frame is one message with its header.
type frame []byte

func (f frame) stream() uint32 { return binary.BigEndian.Uint32(f[4:8]) }
func (f frame) opens() bool    { return f[8] == typeRequest }

// ends reports whether the frame, from a server, is the last of its stream.
func (f frame) ends() bool {
	return f[8] == typeResponse || f[8] == typeData && f[9]&flagClosed != 0
}

func readFrame(r io.Reader) (frame, error) {
	var header [headerSize]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(header[:4])
	if size > maxPayload {
		return nil, errdefs.Newf(errdefs.TooLarge, "read a ttrpc message", "%d bytes, more than %d", size, maxPayload)
	}
	f := make(frame, headerSize+int(size))
	copy(f, header[:])
	if _, err := io.ReadFull(r, f[headerSize:]); err != nil {
		return nil, err
	}
	return f, nil
}
