package keys

import (
	"encoding/base64"
	"fmt"
	"strings"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// The annotations of an encrypted layer, as ocicrypt writes them.
const (
	annotationPrefix   = "org.opencontainers.image.enc.keys."
	annotationJWE      = annotationPrefix + "jwe"
	annotationPKCS7    = annotationPrefix + "pkcs7"
	annotationProvider = annotationPrefix + "provider."
	annotationPublic   = "org.opencontainers.image.enc.pubopts"
)

// wrapped is what a layer's annotations say of its key.
type wrapped struct {
	// files holds the packets that private keys may open.
	files []packet
	// providers are sorted by name.
	providers []providerPackets
	// public is how the layer is encrypted.
	public publicOptions
}

// packet is one wrapped key; pkcs7 says that it is of PKCS7, else it is a JWE.
type packet struct {
	pkcs7 bool
	data  []byte
}

// providerPackets are the wrapped keys for one provider.
type providerPackets struct {
	name    string
	packets [][]byte
}

// parseAnnotations reads what an image says, which anybody may have written.
func parseAnnotations(annotations map[string]string) (wrapped, error) {
	var w wrapped
	for _, key := range sortedKeys(annotations) {
		value := annotations[key]
		name, isProvider := strings.CutPrefix(key, annotationProvider)
		if key != annotationJWE && key != annotationPKCS7 && !isProvider {
			continue
		}
		packets, err := parsePackets(value)
		if err != nil {
			return wrapped{}, err
		}
		switch {
		case !isProvider:
			for _, p := range packets {
				w.files = append(w.files, packet{pkcs7: key == annotationPKCS7, data: p})
			}
		case name == "" || len(name) > maxNameBytes:
			return wrapped{}, errdefs.Newf(errdefs.NotAnImage, opPackets, "a key provider's name has %d bytes", len(name))
		case len(w.providers) == maxProviders:
			return wrapped{}, errdefs.Newf(errdefs.TooLarge, opPackets, "the layer names more than %d key providers", maxProviders)
		default:
			w.providers = append(w.providers, providerPackets{name, packets})
		}
	}
	public, err := decodeBase64(annotations[annotationPublic], maxOptionsBytes)
	if err == nil {
		w.public, err = parsePublic(public)
	}
	if err != nil {
		return wrapped{}, err
	}
	return w, nil
}

const opPackets = "read wrapped keys of the layer"

// parsePackets reads a comma-separated list of base64 packets.
func parsePackets(list string) ([][]byte, error) {
	if list == "" {
		return nil, nil
	}
	if n := strings.Count(list, ",") + 1; n > maxPackets {
		return nil, errdefs.Newf(errdefs.TooLarge, opPackets, "%d of them, the limit is %d", n, maxPackets)
	}
	var packets [][]byte
	for item := range strings.SplitSeq(list, ",") {
		data, err := decodeBase64(item, maxPacketBytes)
		if err != nil {
			return nil, err
		}
		packets = append(packets, data)
	}
	return packets, nil
}

func decodeBase64(s string, limit int) ([]byte, error) {
	if n := base64.StdEncoding.DecodedLen(len(s)); n > limit+2 { // the padding counts
		return nil, errdefs.Newf(errdefs.TooLarge, opPackets, "one has %d bytes, the limit is %d", n, limit)
	}
	data, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return nil, errdefs.New(errdefs.NotAnImage, opPackets, fmt.Errorf("no base64: %w", err))
	}
	return data, nil
}
