package cdhclient

import (
	"google.golang.org/protobuf/types/known/emptypb"
)

// raw is a message of which only the bytes matter: to protobuf, an empty message with
// fields that it does not know.
type raw struct{ *emptypb.Empty }

func newRaw(payload []byte) raw {
	m := &emptypb.Empty{}
	m.ProtoReflect().SetUnknown(payload)
	return raw{m}
}

func (r raw) bytes() []byte { return r.ProtoReflect().GetUnknown() }
