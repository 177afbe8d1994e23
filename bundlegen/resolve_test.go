package bundlegen

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/user"
	. "github.com/onsi/gomega"
	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/husk-cri/husk/pkg/errdefs"
)

const (
	testPasswd = `root:x:0:0:root:/root:/bin/sh
daemon:x:1:1::/:/bin/false
web:x:1000:1000:Web:/home/web:/bin/sh
short:x:1001:1001
nohome:x:1002:1002:::
twice:x:1003:1003::/one:
twice:x:1004:1004::/two:
1005:x:1006:1006::/number:
`
	testGroup = `root:x:0:
bin:x:1:root,daemon
web:x:1000:
staff:x:50:other,web
dup:x:50:web
wheel:x:10:web
nolist:x:60
`
)

// rootfs returns a directory with etc/passwd and etc/group; an empty content makes no file.
func rootfs(t *testing.T, passwd, group string) string {
	t.Helper()
	g := NewWithT(t)
	dir := t.TempDir()
	g.Expect(os.Mkdir(filepath.Join(dir, "etc"), 0o755)).To(Succeed())
	for name, content := range map[string]string{"passwd": passwd, "group": group} {
		if content != "" {
			g.Expect(os.WriteFile(filepath.Join(dir, "etc", name), []byte(content), 0o644)).To(Succeed())
		}
	}
	return dir
}

func TestResolve(t *testing.T) {
	t.Parallel()
	type gids = []uint32
	for _, tc := range []struct {
		name string
		user User
		want Identity
	}{
		{"none is root and its groups", User{}, Identity{0, 0, gids{0, 1}, "/root"}},
		{"name", User{Spec: "web"}, Identity{1000, 1000, gids{1000, 50, 10}, "/home/web"}},
		{"name, Strict", User{Spec: "web", Policy: Strict}, Identity{1000, 1000, gids{1000}, "/home/web"}},
		{"name, group name", User{Spec: "web:staff"}, Identity{1000, 50, gids{50}, "/home/web"}},
		{"name, group number", User{Spec: "web:77"}, Identity{1000, 77, gids{77}, "/home/web"}},
		{"name, empty group", User{Spec: "web:"}, Identity{1000, 1000, gids{1000, 50, 10}, "/home/web"}},
		{"number with entry", User{Spec: "1000"}, Identity{1000, 1000, gids{1000, 50, 10}, "/home/web"}},
		{"number with entry, Strict", User{Spec: "1000", Policy: Strict}, Identity{1000, 1000, gids{1000}, "/home/web"}},
		{"number, group number", User{Spec: "1000:77"}, Identity{1000, 77, gids{77}, "/home/web"}},
		{"number, group name", User{Spec: "1000:wheel"}, Identity{1000, 10, gids{10}, "/home/web"}},
		{"number without entry", User{Spec: "4242"}, Identity{4242, 0, gids{0}, "/"}},
		{"number without entry, group", User{Spec: "4242:4243"}, Identity{4242, 4243, gids{4243}, "/"}},
		{"number is no name", User{Spec: "1005"}, Identity{1005, 0, gids{0}, "/"}},
		{"group alone", User{Spec: ":staff"}, Identity{0, 50, gids{50}, "/root"}},
		{"run_as_group over passwd keeps memberships", User{Spec: "web", Group: ptr(uint32(7))},
			Identity{1000, 7, gids{7, 50, 10}, "/home/web"}},
		{"run_as_group over passwd, Strict", User{Spec: "web", Group: ptr(uint32(7)), Policy: Strict},
			Identity{1000, 7, gids{7}, "/home/web"}},
		{"run_as_group over the spec's group", User{Spec: "web:nosuch", Group: ptr(uint32(7))},
			Identity{1000, 7, gids{7}, "/home/web"}},
		{"run_as_group, no entry", User{Spec: "4242", Group: ptr(uint32(7))}, Identity{4242, 7, gids{7}, "/"}},
		{"request's groups, merged", User{Spec: "web", SupplementalGroups: gids{5, 50, 1000, 5}},
			Identity{1000, 1000, gids{1000, 50, 10, 5}, "/home/web"}},
		{"request's groups, Strict", User{Spec: "web", SupplementalGroups: gids{5, 50}, Policy: Strict},
			Identity{1000, 1000, gids{1000, 5, 50}, "/home/web"}},
		{"short entry", User{Spec: "short"}, Identity{1001, 1001, gids{1001}, "/"}},
		{"no home", User{Spec: "nohome"}, Identity{1002, 1002, gids{1002}, "/"}},
		{"first entry wins", User{Spec: "twice"}, Identity{1003, 1003, gids{1003}, "/one"}},
		{"group without members", User{Spec: "web:nolist"}, Identity{1000, 60, gids{60}, "/home/web"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			got, err := Resolve(rootfs(t, testPasswd, testGroup), tc.user)
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(got).To(Equal(tc.want))
		})
	}
}

func TestResolveWithoutFiles(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		spec string
		want *Identity
	}{
		{"", &Identity{0, 0, []uint32{0}, "/"}},
		{"7", &Identity{7, 0, []uint32{0}, "/"}},
		{"7:8", &Identity{7, 8, []uint32{8}, "/"}},
		{"root", nil},
		{"web", nil},
		{"7:staff", nil},
	} {
		for name, dir := range map[string]string{"no etc": t.TempDir(), "no files": rootfs(t, "", "")} {
			t.Run(tc.spec+", "+name, func(t *testing.T) {
				t.Parallel()
				g := NewWithT(t)
				got, err := Resolve(dir, User{Spec: tc.spec})
				if tc.want == nil {
					g.Expect(errdefs.Is(err, errdefs.UserUnresolvable)).To(BeTrue())
					g.Expect(got).To(BeZero())
					return
				}
				g.Expect(err).NotTo(HaveOccurred())
				g.Expect(got).To(Equal(*tc.want))
			})
		}
	}
}

func TestResolveRefusesUnknownNames(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ spec, passwd, group string }{
		"user":                   {"nosuch", testPasswd, testGroup},
		"group":                  {"web:nosuch", testPasswd, testGroup},
		"group of a number":      {"7:nosuch", testPasswd, testGroup},
		"prefix":                 {"we", testPasswd, testGroup},
		"case":                   {"WEB", testPasswd, testGroup},
		"broken uid":             {"web", "web:x:oops:1000::/:\n", testGroup},
		"empty uid":              {"web", "web:x::1000::/:\n", testGroup},
		"broken gid":             {"web", "web:x:1000:oops::/:\n", testGroup},
		"uid that wraps to root": {"web", "web:x:4294967296:1000::/:\n", testGroup},
		"gid that wraps to root": {"web", "web:x:1000:4294967296::/:\n", testGroup},
		"negative uid":           {"web", "web:x:-1:1000::/:\n", testGroup},
		"signed uid":             {"web", "web:x:+0:1000::/:\n", testGroup},
		"uid beyond 64 bits":     {"web", "web:x:99999999999999999999:1000::/:\n", testGroup},
		"no gid":                 {"web", "web:x:1000\n", testGroup},
		"comment":                {"#web", "#web:x:0:0::/:\n", testGroup},
		"broken group":           {"web:staff", testPasswd, "staff:x:oops:\n"},
		"group without gid":      {"web:staff", testPasswd, "staff:x\n"},
		"user that only a group": {"staff", testPasswd, testGroup},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			got, err := Resolve(rootfs(t, tc.passwd, tc.group), User{Spec: tc.spec})
			g.Expect(errdefs.Is(err, errdefs.UserUnresolvable)).To(BeTrue(), "%v", err)
			g.Expect(err).To(MatchError(ContainSubstring(tc.spec)))
			g.Expect(got).To(BeZero())
		})
	}
}

func TestResolveChecksItsArguments(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	_, err := Resolve("relative", User{})
	g.Expect(errdefs.Is(err, errdefs.InvalidArgument)).To(BeTrue())
	_, err = Resolve(filepath.Join(t.TempDir(), "missing"), User{})
	g.Expect(err).To(HaveOccurred())
	_, err = Resolve(t.TempDir(), User{Policy: "Loose"})
	g.Expect(errdefs.Is(err, errdefs.InvalidArgument)).To(BeTrue())
}

func TestApply(t *testing.T) {
	t.Parallel()
	id := Identity{UID: 7, GID: 8, Groups: []uint32{8, 9}, Home: "/home/web"}
	for name, tc := range map[string]struct{ env, want []string }{
		"unset":        {[]string{"PATH=/bin"}, []string{"PATH=/bin", "HOME=/home/web"}},
		"none":         {nil, []string{"HOME=/home/web"}},
		"set":          {[]string{"HOME=/x", "PATH=/bin"}, []string{"HOME=/x", "PATH=/bin"}},
		"set to empty": {[]string{"HOME=", "PATH=/bin"}, []string{"HOME=/home/web", "PATH=/bin"}},
		"other names":  {[]string{"HOMER=/x", "MYHOME=/y"}, []string{"HOMER=/x", "MYHOME=/y", "HOME=/home/web"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			p := rspec.Process{Env: slices.Clone(tc.env), User: rspec.User{
				UID: PlaceholderID, Umask: ptr(uint32(0o27)), Username: "web", AdditionalGids: []uint32{0, PlaceholderID},
			}}
			id.Apply(&p)
			g.Expect(p.Env).To(Equal(tc.want))
			g.Expect(p.User).To(Equal(rspec.User{UID: 7, GID: 8, AdditionalGids: []uint32{8, 9}, Umask: ptr(uint32(0o27))}))
			id.Apply(&p)
			g.Expect(p.Env).To(Equal(tc.want), "a second time")
		})
	}
}

// FuzzResolve checks that a name is only ever what an entry of that name says, and that
// clean files give what github.com/moby/sys/user, and so CRI-O and runc, make of them.
func FuzzResolve(f *testing.F) {
	for _, spec := range []string{"", "web", "web:staff", "0", "1000:50", "nosuch", ":staff", "4294967296", "web:"} {
		f.Add(spec, []byte(testPasswd), []byte(testGroup))
	}
	f.Add("web", []byte("web:x:4294967296:0\nweb::oops:0\n:::\n\n#web:x:0:0"), []byte("g:x:00000000001:web,,web\n"))
	f.Add("web", []byte(":::::::::::::\x00\r\nweb:x:1:1:::::::"), bytes.Repeat([]byte("a:b:1:web\n"), 100))
	f.Fuzz(func(t *testing.T, spec string, passwd, group []byte) {
		if _, err := EncodeUser(User{Spec: spec}); err != nil {
			return
		}
		id, err := lookUp(User{Spec: spec}, passwd, group)
		if err == nil && (id.UID > maxID || id.GID > maxID || len(id.Groups) == 0 || id.Groups[0] != id.GID) {
			t.Fatalf("%q gave %+v", spec, id)
		}
		if !clean(passwd, 4) || !clean(group, 3) {
			return
		}
		defaults := &user.ExecUser{Home: "/"}
		want, mobyErr := user.GetExecUser(spec, defaults, bytes.NewReader(passwd), bytes.NewReader(group))
		if (err == nil) != (mobyErr == nil) {
			t.Fatalf("%q: %v, moby: %v", spec, err, mobyErr)
		}
		if err == nil && (int(id.UID) != want.Uid || int(id.GID) != want.Gid || id.Home != firstOf(want.Home, "/") || !sameGroups(id, want)) {
			t.Fatalf("%q: %+v, moby: %+v", spec, id, want)
		}
	})
}

// clean reports whether every line is an entry for both parsers.
func clean(file []byte, minFields int) bool {
	for line := range strings.Lines(string(file)) {
		fields := strings.Split(strings.TrimSpace(line), ":")
		if len(fields) < minFields || fields[0] == "" || fields[0][0] == '#' || len(line) > 1<<15 {
			return false
		}
		for _, id := range fields[2:minFields] {
			if _, ok := parseID([]byte(id)); !ok {
				return false
			}
		}
	}
	return true
}

func sameGroups(id Identity, want *user.ExecUser) bool {
	gids := []uint32{uint32(want.Gid)}
	for _, g := range want.Sgids {
		gids = append(gids, uint32(g))
	}
	return slices.Equal(id.Groups, dedup(gids))
}
