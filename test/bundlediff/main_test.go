package main

import (
	"maps"
	"os"
	"slices"
	"testing"

	. "github.com/onsi/gomega"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
)

// sample has every kind of field that flatten treats in its own way.
func sample(t *testing.T) any {
	t.Helper()
	limit := int64(7)
	tree, err := decode(&rspec.Spec{
		Version: "1.2.1", Hostname: "h", Root: &rspec.Root{Path: "/r", Readonly: true}, Annotations: map[string]string{"a.b/c": "d", "x": ""},
		Mounts: []rspec.Mount{{Destination: "/proc", Type: "proc", Options: []string{"ro", "rw"}}, {Destination: "/dev", Source: "tmpfs"}},
		Process: &rspec.Process{
			Args: []string{"a", "b"}, Env: []string{"A=1", "B=2", "A=3", "nothing"}, Cwd: "/", User: rspec.User{UID: 1, GID: 2, AdditionalGids: []uint32{2, 3}},
			Capabilities: &rspec.LinuxCapabilities{Bounding: []string{"CAP_KILL", "CAP_CHOWN"}}, Rlimits: []rspec.POSIXRlimit{{Type: "R", Hard: 1 << 60}},
		},
		Linux: &rspec.Linux{
			Namespaces: []rspec.LinuxNamespace{{Type: "pid"}, {Type: "ipc", Path: "/i"}}, MaskedPaths: []string{"/a", "/b"}, ReadonlyPaths: []string{},
			Devices: []rspec.LinuxDevice{{Path: "/dev/x", Major: 1}}, Sysctl: map[string]string{"a.b": "1"},
			Seccomp:   &rspec.LinuxSeccomp{DefaultAction: "x", Syscalls: []rspec.LinuxSyscall{{Names: []string{"read", "write"}}}},
			Resources: &rspec.LinuxResources{Pids: &rspec.LinuxPids{Limit: limit}, Devices: []rspec.LinuxDeviceCgroup{{Access: "rwm"}}},
		},
	})
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	return tree
}

func sampleResult(t *testing.T, edit func(husk *side)) result {
	t.Helper()
	r := result{combination: combination{Topic: "t", Name: "n"}}
	r.stock = side{spec: sample(t), rootfs: map[string]string{"/data": "drwxr-xr-x 0:0"}, home: "/root"}
	r.husk = side{spec: sample(t), rootfs: maps.Clone(r.stock.rootfs), home: "/root"}
	if edit != nil {
		edit(&r.husk)
	}
	return r
}

// TestEveryChangeIsSeen changes each part of a spec in turn.
func TestEveryChangeIsSeen(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	same, compared := compare(sampleResult(t, nil))
	g.Expect(same).To(BeEmpty())
	g.Expect(compared).To(BeNumerically(">", 30))
	n := 0
	for what, spec := range mutations(sample(t)) {
		diffs, _ := compare(sampleResult(t, func(husk *side) { husk.spec = spec }))
		g.Expect(diffs).NotTo(BeEmpty(), what)
		n++
	}
	g.Expect(n).To(BeNumerically(">", 150))
	tried := map[string]bool{}
	g.Expect(selfCheck(sampleResult(t, nil), tried)).To(BeEmpty())
	g.Expect(tried).To(HaveLen(n + 2))
}

func TestFields(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	f := flatten(sample(t))
	for name, want := range map[string]string{
		"process.args": `["a","b"]`, "process.env[A]": `"3"`, "replaced process.env[A]": `["1"]`, "process.env[B]": `"2"`, "process.env[nothing]": "null",
		"process.user.additionalGids": "[2,3]", `process.capabilities.bounding["CAP_KILL"]`: "true", "mounts[/proc].options": `["ro","rw"]`,
		"mounts[/dev].source": `"tmpfs"`, "linux.namespaces[pid]": "{}", "linux.namespaces[ipc].path": `"/i"`, `linux.maskedPaths["/a"]`: "true",
		"annotations[a.b/c]": `"d"`, "linux.sysctl[a.b]": `"1"`, "root.readonly": "true", "linux.resources.pids.limit": "7", "linux.devices[/dev/x].major": "1",
	} {
		g.Expect(f.values).To(HaveKeyWithValue(name, want))
	}
	g.Expect(f.orders).To(Equal(map[string][]string{"process.env": {"A", "B", "nothing"}, "mounts": {"/proc", "/dev"}}))
	g.Expect(f.values["process.rlimits"]).To(ContainSubstring("1152921504606846976"), "no number is rounded")
}

func TestOrder(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	one, two := flatten(map[string]any{"mounts": mountList("/a", "/b", "/c")}), flatten(map[string]any{"mounts": mountList("/b", "/a")})
	diffs, _ := compareFields(one, two)
	g.Expect(diffs).To(ContainElement(difference{"order of mounts", "/a /b", "/b /a"}))
	diffs, _ = compareFields(one, flatten(map[string]any{"mounts": mountList("/a", "/c")}))
	g.Expect(diffs).To(ConsistOf(difference{"mounts[/b].type", `"t"`, absent}), "what is missing is not out of order")
	masked := func(paths ...any) fields {
		return flatten(map[string]any{"linux": map[string]any{"maskedPaths": paths}})
	}
	diffs, _ = compareFields(masked("/a", "/b"), masked("/b", "/a"))
	g.Expect(diffs).To(BeEmpty(), "a set has no order")
}

func mountList(paths ...string) (list []any) {
	for _, p := range paths {
		list = append(list, map[string]any{"destination": p, "type": "t"})
	}
	return list
}

// TestJudge: the table is exact, and so are the refusals.
func TestJudge(t *testing.T) {
	t.Parallel()
	hostname := func(husk *side) {
		for what, spec := range mutations(husk.spec) {
			if what == "change /hostname" {
				husk.spec = spec
			}
		}
	}
	line := row{Fields: []string{"hostname"}, Stock: `"h"`, Husk: `"h."`, Why: "why"}
	with := func(change func(*row)) []row {
		l := line
		change(&l)
		return []row{l}
	}
	refuse := func(text string) func(*side) { return func(husk *side) { husk.refused = text } }
	wanted := func(stock, husk string) func(*result) {
		return func(r *result) { r.Stock, r.Husk = stock, husk }
	}
	outcome := []row{{Fields: []string{"outcome"}, In: in("t/n"), Stock: made, Husk: refused, Why: "why"}}
	for name, tc := range map[string]struct {
		edit  func(*side)
		want  func(*result)
		table []row
		bad   string
	}{
		"alike":                       {},
		"not listed":                  {edit: hostname, bad: "not listed: t/n: hostname"},
		"listed":                      {edit: hostname, table: []row{line}},
		"listed here":                 {edit: hostname, table: with(func(l *row) { l.In = in("t/n") })},
		"listed elsewhere":            {edit: hostname, table: with(func(l *row) { l.In = in("t/other") }), bad: "not listed: t/n: hostname"},
		"with another value of husk":  {edit: hostname, table: with(func(l *row) { l.Husk = `"x"` }), bad: "not listed"},
		"with another value of stock": {edit: hostname, table: with(func(l *row) { l.Stock = `"x"` }), bad: "not listed"},
		"with a part of the value":    {edit: hostname, table: with(func(l *row) { l.Husk = `"h` }), bad: "not listed"},
		"anything is not nothing":     {edit: hostname, table: with(func(l *row) { l.Husk = absent }), bad: "not listed"},
		"listed and gone":             {table: []row{line}, bad: "listed and not so: hostname"},
		"one of two gone":             {edit: hostname, table: with(func(l *row) { l.Fields = append(l.Fields, "process.cwd") }), bad: "listed and not so: process.cwd"},
		"listed for no combination":   {edit: hostname, table: append(with(func(l *row) { l.In = in() }), line), bad: "listed and not so: hostname"},
		"refused":                     {edit: refuse("no such user"), want: wanted("", "such"), bad: "not listed: t/n: outcome"},
		"refused as listed":           {edit: refuse("no such user"), want: wanted("", "such"), table: outcome},
		"refused for another reason":  {edit: refuse("oops"), want: wanted("", "such"), table: outcome, bad: `husk said "oops"`},
		"refused unexpectedly":        {edit: refuse("oops"), table: outcome, bad: `husk said "oops"`},
		"not refused":                 {want: wanted("", "such"), bad: `husk said ""`},
		"rootfs":                      {edit: func(husk *side) { husk.rootfs["/data"] = "drwxr-xr-x 1:1" }, bad: "not listed: t/n: rootfs[/data]"},
		"home":                        {edit: func(husk *side) { husk.home = "/" }, bad: "not listed: t/n: HOME of the process"},
	} {
		g := NewWithT(t)
		r := sampleResult(t, tc.edit)
		if tc.want != nil {
			tc.want(&r)
		}
		v := judge([]result{r}, tc.table)
		if tc.bad == "" {
			g.Expect(v.Problems).To(BeEmpty(), name)
			g.Expect(report(v, "")).To(Succeed())
			continue
		}
		g.Expect(v.Problems).To(ContainElement(ContainSubstring(tc.bad)), name)
		g.Expect(report(v, "")).NotTo(Succeed(), name)
	}
}

// TestBothRefused: two refusals are alike, and compare nothing else.
func TestBothRefused(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := result{combination: combination{Topic: "t", Name: "n", Stock: "a", Husk: "b"}, stock: side{refused: "a"}, husk: side{refused: "b"}}
	v := judge([]result{r}, nil)
	g.Expect(v.Problems).To(BeEmpty())
	g.Expect([]int{v.Made, v.Compared, v.Tried}).To(Equal([]int{0, 1, 0}))
}

func TestCombinations(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	list := combinations()
	g.Expect(len(list)).To(BeNumerically(">=", 60))
	g.Expect(checkNames(list)).To(Succeed())
	g.Expect(checkNames(append(list, list[0]))).NotTo(Succeed())
	names := map[string]bool{}
	for _, c := range list {
		names[c.config().GetMetadata().GetName()] = true
	}
	for _, l := range listed() {
		g.Expect(l.Why).NotTo(BeEmpty())
		g.Expect(l.In == nil || slices.ContainsFunc(list, l.In)).To(BeTrue(), l.Why)
	}
}

// TestUnpack: what bundlegen sees is what is in the layer.
func TestUnpack(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, kind := range []string{usual, none, blank, linked, broken, folders} {
		g := NewWithT(t)
		dir := t.TempDir()
		g.Expect(unpack(dir, kind)).To(Succeed())
		for _, e := range layerOf(kind) {
			g.Expect(lookAt(dir, "/"+e.Path)).NotTo(Equal("nothing"), kind+" "+e.Path)
		}
		g.Expect(lookAt(dir, "/srv/there")).To(Equal("drwxr-x--- 7:8"))
		g.Expect(lookAt(dir, "/var/link")).To(Equal("link to /srv/there"))
		g.Expect(lookAt(dir, "/srv/gone")).To(Equal("nothing"))
	}
}
