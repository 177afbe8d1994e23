package cstore

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/manifestonly/storetest"
)

// FuzzParseMetadata: metadata is read from a file that others write too. Whatever
// is in it, nothing panics, and what is read and written again is the same.
func FuzzParseMetadata(f *testing.F) {
	full := storetest.Spec{Reference: "registry.test/app:v1", Index: "i", Layers: 2, Encrypted: true, Signatures: [][]byte{[]byte("\xa0one"), []byte("two")}}
	for _, spec := range []storetest.Spec{full, {Reference: "localhost:5000/a/b@sha256:" + strings.Repeat("0", 64)}} {
		text, err := describe(storetest.Make(f, spec), nil).encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
		f.Add(strings.Replace(text, `"version":1`, `"version":2`, 1))
		f.Add(strings.ReplaceAll(text, "2026-08-01T12:00:00Z", "0000-01-01T00:00:00+23:59"))
		f.Add(strings.ReplaceAll(text, "sha256", "sha512"))
	}
	for _, text := range []string{
		"", "null", `{"husk":null}`, `{"husk":{}}`, `{"husk":[]}`, `{"HUSK":{"version":1},"x":"husk"}`, `{"signature-sizes":[-1,9223372036854775807]}`,
		`{"husk":{"references":[{"reference":"","digest":"","pulled_at":"9999-12-31T23:59:59-23:59"}]}}`, "{\"husk\":{\"platform\":\"\xff\"}}",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		g := NewWithT(t)
		first, err := decode(text)
		if err != nil || first == nil {
			g.Expect(first).To(BeNil(), "nothing half read is handed on")
			return
		}
		written, err := first.encode()
		g.Expect(err).NotTo(HaveOccurred())
		second, err := decode(written)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(second.encode()).To(Equal(written))
		// The names that can be read can be written, and are then the same.
		refs, _ := first.Husk.references()
		kept := metadata{Husk: &husk{References: encodeReferences(refs)}}
		text, err = kept.encode()
		g.Expect(err).NotTo(HaveOccurred())
		again, err := decode(text)
		g.Expect(err).NotTo(HaveOccurred())
		same, err := again.Husk.references()
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(encodeReferences(same)).To(Equal(encodeReferences(refs)))
		_, _ = first.Husk.record()
	})
}

// docs/records.md has one table row for each field of the JSON, and none for others.
func TestFieldsAreDocumented(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	page, err := os.ReadFile("../../docs/records.md")
	g.Expect(err).NotTo(HaveOccurred())
	for heading, value := range map[string]any{
		"### Metadata": metadata{}, "### `husk`": husk{}, "### `husk.references[]`": reference{},
	} {
		g.Expect(rows(string(page), heading)).To(ConsistOf(tags(reflect.TypeOf(value))), heading)
	}
	var keys []string
	for _, it := range items(storetest.Make(t, storetest.Spec{Reference: "a.test/b:c", Index: "i", Signatures: [][]byte{[]byte("s")}})) {
		key := regexp.MustCompile(`sha256:[0-9a-f]{64}`).ReplaceAllString(it.key, "DIGEST")
		keys = append(keys, regexp.MustCompile(`[0-9a-f]{64}`).ReplaceAllString(key, "HEX"))
	}
	g.Expect(rows(string(page), "### Big data")).To(ConsistOf("manifest", "DIGEST", "manifest-DIGEST", "signatures", "signature-HEX"))
	g.Expect(keys).To(HaveEach(BeElementOf(rows(string(page), "### Big data"))))
	kinds := []string{}
	for _, k := range []Kind{HalfRecord, DamagedData, SignatureMismatch, BadReference, StrayFile, OrphanData, UnknownVersion, Unused} {
		kinds = append(kinds, string(k))
	}
	g.Expect(rows(string(page), "### Findings")).To(ConsistOf(kinds))
}

// rows returns what stands in backquotes at the start of each table row below a
// heading.
func rows(page, heading string) []string {
	_, section, _ := strings.Cut(page, "\n"+heading+"\n")
	section, _, _ = strings.Cut(section, "\n#")
	var names []string
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)`").FindAllStringSubmatch(section, -1) {
		names = append(names, row[1])
	}
	return names
}

func tags(t reflect.Type) []string {
	var names []string
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		names = append(names, name)
	}
	return names
}
