package keys

import "time"

// What an image, a key provider or a wrong path may make this process do. A limit
// that is hit is an error; nothing is ever truncated.
const (
	// DefaultProviderTimeout bounds what one key provider may take for one layer,
	// all its packets together: a provider that hangs must not hold a pod for ever.
	// An attestation with a slow quoting service takes tens of seconds.
	DefaultProviderTimeout = time.Minute

	// maxKeyFiles and maxKeyBytes bound the keys directory, which is meant to hold
	// a few keys: a wrong path in the configuration must not make a pull read a
	// whole file system.
	maxKeyFiles = 64
	maxKeyBytes = 64 << 10
	// maxConfigBytes bounds the providers' configuration, for the same reason.
	maxConfigBytes = 1 << 20
	// maxProviders bounds the providers in it: each may cost a timeout per layer.
	maxProviders = 16
	// maxNameBytes bounds a provider's name, which an image may choose too.
	maxNameBytes = 128
	// maxArgs bounds the arguments of a cmd provider.
	maxArgs = 64

	// maxPackets bounds the wrapped keys that a layer carries per scheme: each costs
	// an RSA operation per private key, or a request to the provider.
	maxPackets = 32
	// maxPacketBytes bounds one of them, decoded. A JWE for a hundred recipients
	// has some 60 KiB.
	maxPacketBytes = 256 << 10
	// maxReplyBytes bounds a provider's reply: the wrapped options of a layer have
	// some 200 bytes, the form as a list of numbers four times that.
	maxReplyBytes = 64 << 10
	// maxOptionsBytes bounds the options of the cipher, private or public.
	maxOptionsBytes = 16 << 10
)

// commandGrace is how long the output of a cmd provider may stay open after it was
// killed: a process that it left behind may hold it.
const commandGrace = 2 * time.Second
