package keys

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"testing"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// publicSeed are public cipher options that are right.
const publicSeed = `{"cipher":"AES_256_CTR_HMAC_SHA256","hmac":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","cipheroptions":{}}`

func FuzzReply(f *testing.F) {
	for _, seed := range []string{
		`{"keyunwrapresults":{"optsdata":"AAEC"}}`, `{"keyunwrapresults":{"optsdata":[0,1,2]}}`, `{"keyunwrapresults":{"optsdata":[256]}}`,
		`{"keywrapresults":{"annotation":null}}`, `null`, `[`, ``,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, reply []byte) {
		out, err := parseReply(reply)
		if err != nil && (out.Unwrap.Options != nil || len(reply) > 8 && bytes.Contains([]byte(err.Error()), reply)) {
			t.Fatalf("a reply that was refused shows: %v", err)
		}
		if len(out.Unwrap.Options) > len(reply) {
			t.Fatalf("%d bytes from a reply of %d", len(out.Unwrap.Options), len(reply))
		}
	})
}

func FuzzProviders(f *testing.F) {
	for _, seed := range []string{
		`{"key-providers":{"p":{"cmd":{"path":"/bin/x","args":["a"]}}}}`, `{"key-providers":{"p":{"grpc":"http://a:1"},"q":{"ttrpc":"unix:///x"}}}`,
		`{"key-providers":{"p":null}}`, `{"key-providers":null}`, `{`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		providers, err := parseProviders(data)
		if err != nil && providers != nil {
			t.Fatal("providers of a refused configuration")
		}
		if len(providers) > maxProviders {
			t.Fatalf("%d providers", len(providers))
		}
		for name, p := range providers {
			if p.name != name || name == "" || p.method() == methodCommand && p.path[0] != '/' {
				t.Fatalf("provider %q: %+v", name, p)
			}
		}
	})
}

func FuzzAnnotations(f *testing.F) {
	public := base64.StdEncoding.EncodeToString([]byte(publicSeed))
	f.Add("eyJhIjoxfQ==", "AAEC,AAEC", "attestation-agent", public)
	f.Add(",", "", "", public)
	f.Add("", "%", "x", "AAA")
	f.Fuzz(func(t *testing.T, jwe, provider, name, public string) {
		w, err := parseAnnotations(map[string]string{annotationJWE: jwe, annotationProvider + name: provider, annotationPublic: public})
		if err != nil {
			if k := errdefs.KindOf(err); k != errdefs.NotAnImage && k != errdefs.TooLarge && k != errdefs.Unsupported {
				t.Fatalf("kind %s: %v", k, err)
			}
			return
		}
		if len(w.files) > maxPackets || len(w.providers) > maxProviders || len(w.public.hmac) != hmacBytes {
			t.Fatal("past a bound")
		}
		for _, p := range w.files {
			if len(p.data) > maxPacketBytes+2 {
				t.Fatalf("a packet of %d bytes", len(p.data))
			}
			// Opening a packet must not panic, whatever it holds.
			keys := fileKeys{}
			if options, err := keys.unwrap(p); err == nil {
				t.Fatalf("%d bytes unwrapped without a key", len(options))
			}
		}
	})
}

func FuzzLayerKey(f *testing.F) {
	key := `{"symkey":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","digest":"","cipheroptions":{"nonce":"AAAAAAAAAAAAAAAAAAAAAA=="}}`
	f.Add([]byte(key), []byte(publicSeed), []byte("ciphertext"))
	f.Add([]byte(`{"cipheroptions":{"nonce":"AA=="}}`), []byte(publicSeed), []byte{})
	f.Add([]byte(`null`), []byte(`null`), []byte{})
	f.Fuzz(func(t *testing.T, private, public, blob []byte) {
		pub, err := parsePublic(public)
		if err != nil {
			if k := errdefs.KindOf(err); k != errdefs.NotAnImage && k != errdefs.TooLarge && k != errdefs.Unsupported {
				t.Fatalf("kind %s: %v", k, err)
			}
			return
		}
		key, err := parseLayerKey(private, pub)
		if !bytes.Equal(private, make([]byte, len(private))) {
			t.Fatal("the options were not wiped")
		}
		if err != nil {
			if key != nil {
				t.Fatal("a key and an error")
			}
			return
		}
		r, err := key.Open(bytes.NewReader(blob))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil && !errdefs.Is(err, errdefs.DigestMismatch) || errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
	})
}
