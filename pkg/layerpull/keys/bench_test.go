package keys

import (
	"bytes"
	"encoding/json"
	"io"
	"testing"

	"github.com/containers/ocicrypt/blockcipher"
)

// BenchmarkDecrypt compares the layer cipher with ocicrypt's, from memory.
func BenchmarkDecrypt(b *testing.B) {
	handler, err := blockcipher.NewLayerBlockCipherHandler()
	if err != nil {
		b.Fatal(err)
	}
	reader, finish, err := handler.Encrypt(bytes.NewReader(make([]byte, 64<<20)), blockcipher.AES256CTR)
	if err != nil {
		b.Fatal(err)
	}
	blob, err := io.ReadAll(reader)
	if err != nil {
		b.Fatal(err)
	}
	options, err := finish()
	if err != nil {
		b.Fatal(err)
	}
	run := func(name string, open func(io.Reader) (io.Reader, error)) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(blob)))
			b.ReportAllocs()
			buf := make([]byte, 64<<10)
			for b.Loop() {
				plain, err := open(bytes.NewReader(blob))
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, plain, buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	run("ocicrypt", func(r io.Reader) (io.Reader, error) {
		plain, _, err := handler.Decrypt(r, options)
		return plain, err
	})
	private, err := json.Marshal(options.Private)
	if err != nil {
		b.Fatal(err)
	}
	public, err := json.Marshal(options.Public)
	if err != nil {
		b.Fatal(err)
	}
	pub, err := parsePublic(public)
	if err != nil {
		b.Fatal(err)
	}
	key, err := parseLayerKey(private, pub)
	if err != nil {
		b.Fatal(err)
	}
	run("husk", key.Open)
}
