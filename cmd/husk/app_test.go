package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/containers/storage"
	. "github.com/onsi/gomega"
	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	"github.com/husk-cri/husk/internal/testkit/huskconf"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// place is a node's configuration in a directory of its own.
type place struct {
	dir, husk string
	conf      huskconf.Place
}

// newPlace writes both configurations; the machine's own are not read.
func newPlace(t *testing.T) place {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, as husk does")
	}
	conf := huskconf.New(t)
	return place{dir: conf.Dir, husk: conf.File, conf: conf}
}

func (p place) write(t *testing.T, name, text string) string {
	t.Helper()
	return p.conf.Write(t, name, text)
}

// run runs the command as main does and returns what it printed. urfave/cli keeps
// flags of its own in package variables, so tests that run it are not parallel.
func (p place) run(t *testing.T, stdin string, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	app := newApp()
	app.Reader, app.Writer, app.ErrWriter = strings.NewReader(stdin), &out, &out
	err := app.RunContext(t.Context(), append([]string{"husk", "--config", p.husk}, args...))
	return out.String(), err
}

func TestEveryKindHasAnExitCode(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	golden := map[errdefs.Kind]int{
		errdefs.Internal:            1,
		errdefs.InvalidArgument:     1,
		errdefs.NotFound:            3,
		errdefs.Unauthorized:        4,
		errdefs.RegistryUnavailable: 5,
		errdefs.PolicyRefused:       4,
		errdefs.DigestMismatch:      4,
		errdefs.TooLarge:            4,
		errdefs.NotAnImage:          4,
		errdefs.NoPlatform:          3,
		errdefs.InUse:               4,
		errdefs.KeyUnavailable:      1,
		errdefs.UserUnresolvable:    1,
		errdefs.Unavailable:         5,
		errdefs.Unsupported:         1,
		errdefs.Canceled:            1,
		errdefs.DeadlineExceeded:    5,
	}
	for _, k := range errdefs.Kinds() {
		g.Expect(golden).To(HaveKeyWithValue(k, exitCode(errdefs.New(k, "op", nil))), k.String())
	}
	g.Expect(exitCode(errors.New("plain"))).To(Equal(exitFailure))
}

func TestWrongCommandLines(t *testing.T) {
	p := newPlace(t)
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"images", "--format", "xml"}, "neither text nor json nor a Go template"},
		{[]string{"pull"}, "got 0 arguments"},
		{[]string{"inspect", "a", "b"}, "got 2 arguments"},
		{[]string{"rm"}, "got 0 arguments"},
		{[]string{"pull", "--username", "u", "a"}, "go together"},
		{[]string{"pull", "--password-stdin", "a"}, "go together"},
		{[]string{"config", "x"}, "takes no arguments"},
		{[]string{"version", "x"}, "takes no arguments"},
		{[]string{"serve", "--no-such-flag"}, "flag provided but not defined: -no-such-flag: usage: husk [--config FILE] serve"},
		{[]string{"--no-such-flag"}, "flag provided but not defined: -no-such-flag: usage: husk [--config FILE] COMMAND"},
		{[]string{"no-such-command"}, "no command no-such-command: see husk --help"},
		{[]string{"inspect", "a", "--format", "json"}, "options go before a reference or an image ID; usage: husk inspect [--format"},
		{[]string{"resolve", "a", "--format=json"}, "options go before"},
		{[]string{"pull", "a", "-u", "b"}, "options go before"},
		{[]string{"completion", "tcsh"}, "none of bash, zsh, fish"},
	} {
		g := NewWithT(t)
		out, err := p.run(t, "", c.args...)
		g.Expect(out).To(BeEmpty(), "the error says it all: %v", c.args)
		g.Expect(err).To(MatchError(ContainSubstring(c.says)), "%v", c.args)
		g.Expect(exitCode(err)).To(Equal(exitFailure), "%v", c.args)
	}
	g := NewWithT(t)
	out, err := p.run(t, "")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(out).To(ContainSubstring("COMMANDS:"), "nothing asked is help asked")
	p.husk = filepath.Join(p.dir, "none.toml")
	_, err = p.run(t, "", "images")
	g.Expect(err).To(MatchError(os.ErrNotExist), "a configuration that was named must be there")
}

func TestPasswordComesFromStandardInput(t *testing.T) {
	r := fakeregistry.New(t, fakeregistry.Options{Username: "alice", Password: "hunter2 is secret"})
	pushed := r.Push(t, "app", "v1", fakeregistry.Image{})
	for name, c := range map[string]struct {
		stdin string
		code  int // 0: it works
	}{
		"a line":              {"hunter2 is secret\n", 0},
		"a line from Windows": {"hunter2 is secret\r\nmore\n", 0},
		"no newline":          {"hunter2 is secret", 0},
		"wrong":               {"hunter3 is secret\n", exitRefused},
		"nothing":             {"", exitFailure},
		"too long":            {"hunter2 is secret" + strings.Repeat("x", maxPassword), exitFailure},
	} {
		t.Run(name, func(t *testing.T) {
			g := NewWithT(t)
			out, err := newPlace(t).run(t, c.stdin, "pull", "--username", "alice", "--password-stdin", pushed.Reference)
			if c.code == 0 {
				g.Expect(err).NotTo(HaveOccurred())
				g.Expect(out).To(Equal(pushed.ConfigDigest.Encoded() + "\n"))
				return
			}
			g.Expect(exitCode(err)).To(Equal(c.code), "%v", err)
			g.Expect(out + err.Error()).NotTo(ContainSubstring("is secret"))
		})
	}
}

// TestCommands pulls an image and looks at it by every name it has.
func TestCommands(t *testing.T) {
	g := NewWithT(t)
	r := fakeregistry.New(t, fakeregistry.Options{})
	pushed := r.Push(t, "app", "v1", fakeregistry.Image{Layers: [][]byte{[]byte("a layer")}, Config: imgspec.Image{Config: imgspec.ImageConfig{User: "web"}}})
	p := newPlace(t)
	id := pushed.ConfigDigest.Encoded()
	for _, args := range [][]string{{"images"}, {"check"}, {"inspect", id}, {"rm", id}} { // no CRI-O has run here
		_, err := p.run(t, "", args...)
		g.Expect(exitCode(err)).To(Equal(exitUnavailable), "%v: %v", args, err)
		g.Expect(filepath.Join(p.dir, "root")).NotTo(BeADirectory(), "%v", args)
		g.Expect(filepath.Join(p.dir, "run")).NotTo(BeADirectory(), "%v", args)
	}
	out, err := p.run(t, "", "pull", "--format", "json", pushed.Reference)
	g.Expect(err).NotTo(HaveOccurred())
	var pulled imageView
	g.Expect(json.Unmarshal([]byte(out), &pulled)).To(Succeed())
	g.Expect(pulled.ImageID).To(Equal(id))
	g.Expect([]any{pulled.User, pulled.Layers, pulled.ManifestDigest}).To(Equal([]any{"web", 1, pushed.Digest.String()}))
	g.Expect(r.Asked(pushed.Layers[0].String())).To(BeFalse())

	out, err = p.run(t, "", "images")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(out).To(And(ContainSubstring(pushed.Reference), ContainSubstring(id[:12])))
	for _, command := range [][]string{{"images"}, {"inspect", pushed.Reference}, {"pull", pushed.Reference}} {
		out, err = p.run(t, "", append([]string{command[0], "--format", "{{.ImageID}} {{.User}}"}, command[1:]...)...)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(out).To(Equal(id+" web\n"), command[0])
	}
	for _, name := range []string{id, "sha256:" + id, id[:12], pulled.StorageID, pushed.Reference, pushed.Repository + "@" + pushed.Digest.String()} {
		out, err = p.run(t, "", "inspect", name)
		g.Expect(err).NotTo(HaveOccurred(), name)
		var views []imageView
		g.Expect(json.Unmarshal([]byte(out), &views)).To(Succeed())
		g.Expect(views).To(HaveLen(1))
		g.Expect(views[0].ImageID).To(Equal(id), name)
		g.Expect(views[0].Config.Config.User).To(Equal("web"))
	}
	absent := digest.FromString("absent").Encoded()
	for _, name := range []string{r.Host() + "/app:none", absent} {
		for _, command := range []string{"inspect", "rm"} {
			_, err = p.run(t, "", command, name)
			g.Expect(exitCode(err)).To(Equal(exitNotFound), "%s %s: %v", command, name, err)
		}
	}
	for _, name := range []string{pushed.Reference, id[:12], pulled.StorageID, id} {
		_, err = p.run(t, "", "pull", pushed.Reference)
		g.Expect(err).NotTo(HaveOccurred())
		out, err = p.run(t, "", "rm", name)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(out).To(Equal(name + "\n"))
		out, err = p.run(t, "", "images", "--format", "json")
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(out).To(MatchJSON(`[]`), name)
	}
}

// TestRemoveInUse names what the user named, not a storage ID.
func TestRemoveInUse(t *testing.T) {
	g := NewWithT(t)
	pushed := fakeregistry.New(t, fakeregistry.Options{}).Push(t, "app", "v1", fakeregistry.Image{})
	p := newPlace(t)
	out, err := p.run(t, "", "pull", "--format", "{{.StorageID}}", pushed.Reference)
	g.Expect(err).NotTo(HaveOccurred())
	crio, err := storage.GetStore(storage.StoreOptions{ // a run root of its own, as another process
		GraphRoot: filepath.Join(p.dir, "root"), RunRoot: filepath.Join(p.dir, "crio-run"), GraphDriverName: "vfs",
	})
	g.Expect(err).NotTo(HaveOccurred())
	_, err = crio.CreateContainer("", nil, strings.TrimSpace(out), "", "", nil)
	g.Expect(err).NotTo(HaveOccurred())
	for _, name := range []string{pushed.Reference, pushed.ConfigDigest.Encoded()} {
		_, err = p.run(t, "", "rm", name)
		g.Expect(exitCode(err)).To(Equal(exitRefused), "%v", err)
		g.Expect(err).To(MatchError("remove " + name + ": a container was made from it (husk ps -a, crictl ps -a)"))
	}
	out, err = p.run(t, "", "images", "--format", "{{.StorageID}}")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(out).NotTo(BeEmpty())
}

// TestWhatNeedsRoot runs the commands on a thread of another user.
func TestWhatNeedsRoot(t *testing.T) {
	g := NewWithT(t)
	p := newPlace(t)
	g.Expect(filepath.WalkDir(filepath.Dir(p.dir), func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Chmod(path, 0o777))
	})).To(Succeed())
	refused, other := map[string]error{}, map[string]error{}
	var nobody sync.WaitGroup
	nobody.Go(func() {
		runtime.LockOSThread() // for good: the thread ends with this function
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, 65534, 65534, 65534); errno != 0 {
			return
		}
		for _, args := range [][]string{{"serve"}, {"pull", "a"}, {"images"}, {"inspect", "a"}, {"rm", "a"}, {"check"}} {
			_, refused[args[0]] = p.run(t, "", args...)
		}
		for _, args := range [][]string{{"resolve", "a"}, {"config"}, {"version"}, {"completion", "bash"}, {"man"}} {
			_, other[args[0]] = p.run(t, "", args...)
		}
	})
	nobody.Wait()
	g.Expect(refused).To(HaveLen(6))
	for command, err := range refused {
		g.Expect(err).To(MatchError(command + ": needs root"))
		g.Expect(exitCode(err)).To(Equal(exitFailure))
	}
	g.Expect(filepath.Join(p.dir, "root")).NotTo(BeADirectory())
	g.Expect(errdefs.Is(other["resolve"], errdefs.Unavailable)).To(BeTrue(), "no husk serves here: %v", other["resolve"])
	delete(other, "resolve")
	g.Expect(other).To(And(HaveLen(4), HaveEach(BeNil())))
}

func TestHumanBytes(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{
		0: "0 B", 999: "999 B", 1000: "1 kB", 1234: "1.23 kB", 999_499: "999 kB", 999_999: "1 MB",
		12_345_678: "12.3 MB", 5e9: "5 GB", 7e12: "7 TB", 1<<63 - 1: "9.22 EB",
	} {
		NewWithT(t).Expect(humanBytes(n)).To(Equal(want))
	}
}

func TestCompletionsAndManPageCanBeParsed(t *testing.T) {
	g := NewWithT(t)
	p := newPlace(t)
	for shell, mark := range map[string]string{"bash": "complete -o", "zsh": "#compdef husk", "fish": "complete -c husk"} {
		out, err := p.run(t, "", "completion", shell)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(out).To(And(ContainSubstring(mark), HaveSuffix("\n")))
		if path, err := exec.LookPath(shell); err == nil { // else its syntax goes unchecked here
			check := exec.CommandContext(t.Context(), path, "-n")
			check.Stdin = strings.NewReader(out)
			said, err := check.CombinedOutput()
			g.Expect(err).NotTo(HaveOccurred(), "%s: %s", shell, said)
		}
	}
	page, err := p.run(t, "", "man")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(page).To(ContainSubstring(".TH husk 8"))
	for _, command := range []string{"serve", "pull", "images", "inspect", "resolve", "rm", "check", "config", "version"} {
		g.Expect(page).To(MatchRegexp(`(?m)^\.SH ` + command))
	}
	g.Expect(page).To(ContainSubstring("Exit codes"))
}
