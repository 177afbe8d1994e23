// Package archtest holds the layering of DESIGN section 3: who may import whom.
// A rule that is broken prints the guilty path.
package archtest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
)

const (
	module  = "github.com/husk-cri/husk"
	tags    = "containers_image_openpgp exclude_graphdriver_btrfs"
	storage = "github.com/containers/storage"
	criAPI  = "k8s.io/cri-api"
)

// pkg is what go list says of one package.
type pkg struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	Imports    []string
}

// graph is the import graph of the module and everything below it, tests excluded.
type graph map[string]pkg

func load(t *testing.T) graph {
	t.Helper()
	g := NewWithT(t)
	root, err := filepath.Abs("../..")
	g.Expect(err).NotTo(HaveOccurred())
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath,Dir,GoFiles,Imports", "-tags", tags, "./...")
	cmd.Dir = root
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	g.Expect(err).NotTo(HaveOccurred())
	all := graph{}
	dec := json.NewDecoder(bytes.NewReader(out))
	for {
		var p pkg
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		g.Expect(err).NotTo(HaveOccurred())
		all[p.ImportPath] = p
	}
	g.Expect(all).To(HaveKey(module + "/manifestonly"))
	return all
}

// within reports whether path is dir or below it.
func within(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

// path returns a shortest chain of imports from a package to one that target
// accepts, following only edges that through accepts; nil when there is none.
func (g graph) path(from string, target, through func(string) bool) []string {
	type step struct {
		name string
		prev *step
	}
	seen := map[string]bool{from: true}
	queue := []*step{{name: from}}
	for len(queue) > 0 {
		at := queue[0]
		queue = queue[1:]
		if at.name != from && target(at.name) {
			var chain []string
			for s := at; s != nil; s = s.prev {
				chain = append(chain, s.name)
			}
			slices.Reverse(chain)
			return chain
		}
		for _, next := range g[at.name].Imports {
			if !seen[next] && (through(next) || target(next)) {
				seen[next] = true
				queue = append(queue, &step{next, at})
			}
		}
	}
	return nil
}

// ours lists the packages of this module, without those made for tests.
func (g graph) ours() []string {
	var names []string
	for name := range g {
		if within(name, module) && !within(name, module+"/test") && !within(name, module+"/internal/testkit") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func inModule(name string) bool { return within(name, module) }
func anywhere(string) bool      { return true }

func TestRoomsDoNotImportEachOther(t *testing.T) {
	t.Parallel()
	g := load(t)
	in := func(dirs ...string) func(string) bool {
		return func(name string) bool {
			return slices.ContainsFunc(dirs, func(d string) bool { return within(name, module+"/"+d) })
		}
	}
	for _, rule := range []struct {
		from      string
		forbidden func(string) bool
	}{
		{"manifestonly", in("bundlegen", "status")},
		{"bundlegen", in("manifestonly", "status")},
		{"status", in("manifestonly", "bundlegen")},
		{"internal/shim", in("internal/front")},
		{"pkg/layerpull", in("internal/front")},
	} {
		for _, from := range g.ours() {
			if within(from, module+"/"+rule.from) {
				NewWithT(t).Expect(g.path(from, rule.forbidden, inModule)).To(BeEmpty(), "guilty path")
			}
		}
	}
}

func TestManifestonlyLinksNoTar(t *testing.T) {
	t.Parallel()
	g := load(t)
	tar := func(name string) bool { return name == "archive/tar" }
	NewWithT(t).Expect(g.path(module+"/manifestonly", tar, anywhere)).To(BeEmpty(), "guilty path")
}

// bundlegen is a library for tools that have a store of their own, or none.
func TestBundlegenLinksNoStorage(t *testing.T) {
	t.Parallel()
	g := load(t)
	store := func(name string) bool { return within(name, storage) }
	NewWithT(t).Expect(g.path(module+"/bundlegen", store, anywhere)).To(BeEmpty(), "guilty path")
}

func TestWhoImportsWhat(t *testing.T) {
	t.Parallel()
	g := load(t)
	for _, rule := range []struct {
		what    func(string) bool
		allowed []string
	}{
		{func(n string) bool { return within(n, storage) }, []string{"manifestonly/cstore", "bundlegen/bundles"}},
		{func(n string) bool { return within(n, criAPI) }, []string{"internal/front", "status"}},
	} {
		for _, from := range g.ours() {
			if slices.ContainsFunc(rule.allowed, func(a string) bool { return within(from, module+"/"+a) }) {
				continue
			}
			for _, imp := range g[from].Imports {
				NewWithT(t).Expect(rule.what(imp)).To(BeFalse(), "guilty path: %s -> %s", from, imp)
			}
		}
	}
}

func TestSandboxSideLinksNoCRI(t *testing.T) {
	t.Parallel()
	g := load(t)
	cri := func(name string) bool { return within(name, criAPI) }
	for _, from := range []string{"internal/shim", "pkg/layerpull", "cmd/containerd-shim-husk-v2"} {
		NewWithT(t).Expect(g.path(module+"/"+from, cri, inModule)).To(BeEmpty(), "guilty path")
	}
}

func TestMainsAreShort(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	mains, err := filepath.Glob("../../cmd/*/main.go")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(mains).To(HaveLen(2))
	for _, m := range mains {
		data, err := os.ReadFile(m)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(bytes.Count(data, []byte("\n"))).To(BeNumerically("<=", 40), m)
	}
}

// TestOnlyCommandsExit finds what only a command may do: end the process, and
// start a context from nothing.
func TestOnlyCommandsExit(t *testing.T) {
	t.Parallel()
	guilty := regexp.MustCompile(`\b(os\.Exit|log\.Fatal|context\.Background|context\.TODO|logrus\.Fatal)\w*\(`)
	all := load(t)
	for _, name := range all.ours() {
		if within(name, module+"/cmd") {
			continue
		}
		for _, f := range all[name].GoFiles {
			file, err := os.Open(filepath.Join(all[name].Dir, f))
			NewWithT(t).Expect(err).NotTo(HaveOccurred())
			scan := bufio.NewScanner(file)
			for n := 1; scan.Scan(); n++ {
				code, _, _ := strings.Cut(scan.Text(), "//")
				NewWithT(t).Expect(guilty.FindString(code)).To(BeEmpty(), "%s/%s:%d", name, f, n)
			}
			NewWithT(t).Expect(file.Close()).To(Succeed())
		}
	}
}
