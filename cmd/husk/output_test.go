package main

import (
	"bytes"
	"testing"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/pkg/errdefs"
)

func TestTemplates(t *testing.T) {
	t.Parallel()
	views := []imageView{
		{ImageID: "one", LayerBytes: 12_345_678, IndexDigests: []string{"a", "b"}, References: []referenceView{{Reference: "r"}}},
		{ImageID: "two", LayerBytes: 5},
	}
	for format, want := range map[string]string{
		`{{.ImageID}}`:                                      "one\ntwo\n",
		`{{.ImageID}}\t{{size .LayerBytes}}`:                "one\t12.3 MB\ntwo\t5 B\n",
		`{{range .References}}{{.Reference}}{{end}}`:        "r\n\n",
		`{{json .IndexDigests}} {{join .IndexDigests ","}}`: "[\"a\",\"b\"] a,b\nnull \n",
	} {
		g := NewWithT(t)
		parsed, err := parseFormat(format)
		g.Expect(err).NotTo(HaveOccurred(), format)
		var out bytes.Buffer
		g.Expect(printTemplate(&out, parsed, views)).To(Succeed())
		g.Expect(out.String()).To(Equal(want), format)
	}
	for _, format := range []string{"", "xml", "table", "{{.ImageID", "{{nope .ImageID}}"} {
		_, err := parseFormat(format)
		NewWithT(t).Expect(errdefs.Is(err, errdefs.InvalidArgument)).To(BeTrue(), format)
	}
	g := NewWithT(t)
	parsed, err := parseFormat("{{.Nope}}")
	g.Expect(err).NotTo(HaveOccurred())
	err = printTemplate(new(bytes.Buffer), parsed, views)
	g.Expect(errdefs.Is(err, errdefs.InvalidArgument)).To(BeTrue(), "%v", err)
	g.Expect(err).To(MatchError(ContainSubstring("the fields are ImageID, ManifestDigest, IndexDigests, ")))
	err = printTemplate(new(bytes.Buffer), parsed, configView{})
	g.Expect(err).To(MatchError(And(ContainSubstring("the fields are Listen, "), HaveSuffix(", Files, Origins"))))
	g.Expect(printTemplate(new(bytes.Buffer), parsed, []imageView{})).To(Succeed(), "nothing to print")
}

func TestPrintTable(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	var out bytes.Buffer
	g.Expect(printTable(&out, []string{"NAME", "B"}, [][]string{{"x", "1"}, {"longer", "2"}})).To(Succeed())
	g.Expect(out.String()).To(Equal("NAME    B\nx       1\nlonger  2\n"))
}

// A format that is wrong is refused before a command has done anything.
func TestFormatIsCheckedFirst(t *testing.T) {
	p := newPlace(t)
	for _, format := range []string{"xml", "{{", "{{nope}}"} {
		for _, args := range [][]string{{"pull", "--format", format, "127.0.0.1:1/never:asked"}, {"images", "--format", format}, {"inspect", "--format", format, "x"}, {"config", "--format", format}, {"version", "--format", format}} {
			_, err := p.run(t, "", args...)
			g := NewWithT(t)
			g.Expect(err).To(MatchError(ContainSubstring("--format")), "%v", args)
			g.Expect(exitCode(err)).To(Equal(exitFailure), "%v", args)
		}
	}
	NewWithT(t).Expect(p.dir+"/root").NotTo(BeAnExistingFile(), "no storage was opened")
}
