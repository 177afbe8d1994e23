package layerpull

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/testkit/images"
	"github.com/husk-cri/husk/pkg/imageref"
)

// memoryEnv holds what a child of TestMemory is to pull.
const memoryEnv = "HUSK_TEST_LAYERPULL_MEMORY"

type memoryJob struct {
	Ref                                imageref.Reference
	Store, KeysDir, Policy, Registries string
}

// maxResident is the bound on a process that does nothing but pull.
const maxResident = 64 << 20

// TestMemory: a process that pulls stays small, whatever the size of the layers.
func TestMemory(t *testing.T) {
	if text := os.Getenv(memoryEnv); text != "" {
		pullAsAChild(t, text)
		return
	}
	t.Parallel()
	needsRoot(t)
	keys, public := newKeys(t)
	const size = 96 << 20
	var content []images.Layer // as many at once as may be, none like another
	for n := range int64(MaxParallelLayers) {
		content = append(content, zeroFile(size/2+n))
	}
	for name, spec := range map[string]images.Spec{
		// Together they are larger than the bound, as they are stored or as they are unpacked.
		"large blob, encrypted": {
			Layers: []images.Layer{{Random: size}}, Compression: images.None, Encrypt: &images.Encryption{PublicKeys: [][]byte{public}},
		},
		"large content, gzip": {Layers: content},
		"large content, zstd": {Layers: content, Compression: images.Zstd},
	} {
		t.Run(name, func(t *testing.T) {
			g := NewWithT(t)
			reg := newRegistry(t)
			ref, _ := reg.push(t, spec)
			cfg := reg.config(t)
			text, err := json.Marshal(memoryJob{
				Ref: ref, Store: t.TempDir(), KeysDir: keys, Policy: cfg.PolicyPath, Registries: cfg.RegistriesConf,
			})
			g.Expect(err).NotTo(HaveOccurred())
			cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run", "^TestMemory$", "-test.v")
			cmd.Env = append(os.Environ(), memoryEnv+"="+string(text))
			out, err := cmd.CombinedOutput()
			g.Expect(err).NotTo(HaveOccurred(), "%s", out)
			var peak, bytes int64
			_, err = fmt.Sscanf(string(regexp.MustCompile(`peak .*`).Find(out)), "peak %d bytes %d", &peak, &bytes)
			g.Expect(err).NotTo(HaveOccurred(), "%s", out)
			g.Expect(bytes).To(BeNumerically(">=", size))
			g.Expect(peak).To(BeNumerically("<", maxResident))
			t.Logf("%d bytes unpacked with %d resident", bytes, peak)
		})
	}
}

// pullAsAChild pulls and prints the peak of this process's resident memory. That of its
// rusage would have the parent's in it.
func pullAsAChild(t *testing.T, text string) {
	t.Helper()
	g := NewWithT(t)
	debug.SetMemoryLimit(MemoryLimit)
	var job memoryJob
	g.Expect(json.Unmarshal([]byte(text), &job)).To(Succeed())
	store, err := OpenStore(job.Store)
	g.Expect(err).NotTo(HaveOccurred())
	img, err := Pull(t.Context(), job.Ref, store, Config{
		KeysDir: job.KeysDir, PolicyPath: job.Policy, RegistriesConf: job.Registries, RegistriesConfDir: "/nonexistent", AuthFile: "/nonexistent",
		ParallelLayers: MaxParallelLayers,
	})
	g.Expect(err).NotTo(HaveOccurred())
	status, err := os.ReadFile("/proc/self/status")
	g.Expect(err).NotTo(HaveOccurred())
	_, line, _ := strings.Cut(string(status), "VmHWM:")
	kilobytes, err := strconv.ParseInt(strings.Fields(line)[0], 10, 64)
	g.Expect(err).NotTo(HaveOccurred())
	fmt.Printf("peak %d bytes %d\n", kilobytes<<10, img.Bytes)
}
