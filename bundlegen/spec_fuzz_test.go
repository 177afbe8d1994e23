package bundlegen

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/pkg/annotations"
)

// growth bounds how much larger a spec may be than what it is made of: six bytes for one
// that JSON escapes, three times over for what stands in the process and in annotations.
const growth = 18

// FuzzSpec makes specs of image configs and requests that may be hostile: each is refused,
// or makes a valid spec of bounded size, of which the image says nothing it may not say.
func FuzzSpec(f *testing.F) {
	for _, config := range []string{
		`{}`, `null`, `{"config":{"Cmd":["a"]}}`, `{"config":{"Entrypoint":["e"],"Cmd":null,"Env":["A=1","A","=","A=2","PATH="],"User":"web:staff"}}`,
		`{"config":{"Cmd":["\u0000"],"WorkingDir":"x"}}`, `{"config":{"Cmd":["a"],"Volumes":{"":{},"../..":{},"/a//b":{}},"ExposedPorts":{"80":{}}}}`,
		`{"config":{"Cmd":["a"],"Labels":{"husk.dev/user":"{}","io.kubernetes.cri-o.SandboxID":"x"},"StopSignal":"\n","User":"4294967296"}}`,
		`{"config":{"Cmd":["a"],"Healthcheck":{"Test":["CMD","x"]},"OnBuild":["RUN x"]}}`,
	} {
		for _, resolves := range []bool{false, true} {
			f.Add([]byte(config), "a", "A=b", "", "", resolves)
			f.Add([]byte(config), "", "", "/w", "1000:1000", resolves)
		}
	}
	f.Fuzz(func(t *testing.T, config []byte, args, env, cwd, user string, resolves bool) {
		var image imgspec.Image
		if json.Unmarshal(config, &image) != nil {
			return
		}
		rec, pulled := record(t, imgspec.ImageConfig{})
		rec.Image = image
		req := Request{WorkingDir: cwd, RunAsUsername: user}
		if args != "" {
			req.Args = strings.Split(args, "\n")
		}
		if env != "" {
			req.Env = strings.Split(env, "\n")
		}
		spec, err := Spec(rec, pulled, req, SpecOptions{RewriteOptions: RewriteOptions{ResolvesNames: resolves}, Unconfined: true})
		if err != nil {
			return
		}
		if err := Validate(spec); err != nil {
			t.Fatalf("made an invalid spec: %v", err)
		}
		data, err := json.Marshal(spec)
		if err != nil {
			t.Fatal(err)
		}
		if limit := 8<<10 + growth*(len(config)+len(args)+len(env)+len(cwd)+len(user)); len(data) > limit {
			t.Fatalf("a spec of %d bytes of a config of %d", len(data), len(config))
		}
		for key := range spec.Annotations {
			if key != stopSignalAnnotation && key != annotations.CRIOImageName && !strings.HasPrefix(key, annotations.Prefix) {
				t.Fatalf("annotation %q", key)
			}
		}
		names := map[string]bool{}
		for _, entry := range spec.Process.Env {
			name, _, _ := strings.Cut(entry, "=")
			if names[name] {
				t.Fatalf("two variables %q", name)
			}
			names[name] = true
		}
		if root := spec.Process.User.UID == 0; root && mayNotBeRoot(image, req) {
			t.Fatalf("root for the user %q of the image and %q of the request", image.Config.User, user)
		}
	})
}

// mayNotBeRoot reports whether a user was asked for that is not written as uid 0.
func mayNotBeRoot(image imgspec.Image, req Request) bool {
	user, _, _ := strings.Cut(firstOf(req.RunAsUsername, image.Config.User), ":")
	return user != "" && strings.Trim(user, "+-0") != ""
}

// FuzzWriteBundle writes whatever was made; nothing of it is outside of the directory.
func FuzzWriteBundle(f *testing.F) {
	f.Add("/pause", "pod", "/x", "key", "value")
	f.Add("../x", "\x00", "rootfs/../..", "", "\xff")
	f.Fuzz(func(t *testing.T, arg, hostname, root, key, value string) {
		parent := t.TempDir()
		spec, err := SandboxSpec([]string{arg}, SpecOptions{Hostname: hostname, RootPath: root, Unconfined: true, Annotations: map[string]string{key: value}})
		if err != nil {
			return
		}
		if err := WriteBundle(filepath.Join(parent, "bundle"), spec); err != nil {
			return
		}
		entries, err := os.ReadDir(parent)
		if err != nil || len(entries) != 1 {
			t.Fatalf("%v %v", entries, err)
		}
		if got := tree(t, filepath.Join(parent, "bundle")); len(got) != 2 {
			t.Fatal(got)
		}
	})
}
