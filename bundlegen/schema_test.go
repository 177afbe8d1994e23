package bundlegen

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/xeipuuv/gojsonschema"
)

// schema is the runtime-spec's own, out of the module that the specs are made with.
func schema(t testing.TB) *gojsonschema.Schema {
	t.Helper()
	g := NewWithT(t)
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/opencontainers/runtime-spec").Output()
	g.Expect(err).NotTo(HaveOccurred())
	file := filepath.Join(strings.TrimSpace(string(dir)), "schema", "config-schema.json")
	s, err := gojsonschema.NewSchema(gojsonschema.NewReferenceLoader("file://" + file))
	g.Expect(err).NotTo(HaveOccurred())
	return s
}

// faultsBy lists what the schema says against a spec.
func faultsBy(t testing.TB, s *gojsonschema.Schema, spec *rspec.Spec) []string {
	t.Helper()
	result, err := s.Validate(gojsonschema.NewGoLoader(spec))
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	var faults []string
	for _, e := range result.Errors() {
		faults = append(faults, e.String())
	}
	return faults
}

func TestSpecsAreValidByTheSchema(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	s := schema(t)
	names := RewriteOptions{ResolvesNames: true}
	for name, make := range map[string]func() (*rspec.Spec, error){
		"least": func() (*rspec.Spec, error) {
			rec, pulled := record(t, imgspec.ImageConfig{})
			return Spec(rec, pulled, Request{}, SpecOptions{})
		},
		"full": func() (*rspec.Spec, error) {
			rec, pulled := record(t, fullConfig())
			return Spec(rec, pulled, Request{SupplementalGroups: []int64{1, 2}}, SpecOptions{
				RewriteOptions: names, Hostname: "pod", Terminal: true, ReadonlyRoot: true, OOMScoreAdj: ptr(1000), CgroupsPath: "a.slice:b:c",
				Mounts: []rspec.Mount{{Destination: "/x", Type: "bind", Source: "/y", Options: []string{"rbind"}}},
			})
		},
		"sandbox": func() (*rspec.Spec, error) { return SandboxSpec([]string{"/pause"}, SpecOptions{}) },
		"bare": func() (*rspec.Spec, error) {
			rec, pulled := record(t, imgspec.ImageConfig{})
			return Spec(rec, pulled, Request{}, SpecOptions{Unconfined: true, Capabilities: []string{}, Namespaces: []rspec.LinuxNamespace{}})
		},
	} {
		spec, err := make()
		g.Expect(err).NotTo(HaveOccurred(), name)
		g.Expect(Validate(spec)).To(Succeed(), name)
		g.Expect(faultsBy(t, s, spec)).To(BeEmpty(), name)
	}
	// The schema does look.
	spec, err := SandboxSpec([]string{"/pause"}, SpecOptions{})
	g.Expect(err).NotTo(HaveOccurred())
	spec.Process.Cwd = ""
	spec.Linux.Namespaces[0].Type = "nonsense"
	g.Expect(faultsBy(t, s, spec)).NotTo(BeEmpty())
}
