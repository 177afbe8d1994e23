package metrics_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/grpc/codes"

	"github.com/husk-cri/husk/internal/metrics"
	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// update writes the golden list anew: go test ./internal/metrics -update.
var update = flag.Bool("update", false, "write testdata anew")

const listMethod = "/runtime.v1.RuntimeService/ListContainers"

// observer is what the front wants of metrics (front.Observer, by structure).
type observer interface {
	PullStarted() (done func())
	Pulled(handler, outcome string, took time.Duration, result manifestonly.Result)
	LayersStarted() (done func())
	LayersPulled(handler, outcome string, took time.Duration, bytes int64)
	Forwarded(method string, code codes.Code)
}

var _ observer = (*metrics.Metrics)(nil)

// records is a Lister made of a function.
type records func(ctx context.Context) ([]imageref.Record, error)

func (r records) List(ctx context.Context) ([]imageref.Record, error) { return r(ctx) }

func twoRecords(context.Context) ([]imageref.Record, error) {
	return []imageref.Record{{StoredBytes: 1000}, {StoredBytes: 234}}, nil
}

func options() metrics.Options {
	return metrics.Options{
		Version: "1.2.3", Methods: []string{listMethod}, Handlers: []string{"kata"}, Records: records(twoRecords), Sandboxes: pods(noPods),
	}
}

func gather(t *testing.T, m *metrics.Metrics) map[string]*dto.MetricFamily {
	t.Helper()
	families, err := m.Gather(t.Context())
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	byName := map[string]*dto.MetricFamily{}
	for _, f := range families {
		byName[f.GetName()] = f
	}
	return byName
}

// samples returns value by "label,label" of one metric.
func samples(t *testing.T, m *metrics.Metrics, name string) map[string]float64 {
	t.Helper()
	values := map[string]float64{}
	for _, s := range gather(t, m)[name].GetMetric() {
		var labels []string
		for _, l := range s.GetLabel() {
			labels = append(labels, l.GetValue())
		}
		value := s.GetCounter().GetValue() + s.GetGauge().GetValue() + float64(s.GetHistogram().GetSampleCount())
		values[strings.Join(labels, ",")] = value
	}
	return values
}

// exercise makes every metric have a sample.
func exercise(m *metrics.Metrics) {
	m.PullStarted()()
	m.Pulled("kata", metrics.OK, time.Second, manifestonly.Result{})
	m.LayersStarted()()
	m.LayersPulled("kata", metrics.OK, time.Second, 1)
	m.Forwarded(listMethod, codes.OK)
	m.Reloaded(nil)
}

// TestNames holds what dashboards and alerts rely on: name, type and labels.
func TestNames(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	m := metrics.New(options())
	exercise(m)
	var lines []string
	for name, f := range gather(t, m) {
		if !strings.HasPrefix(name, "husk_") {
			continue // the go and process collectors vary with Go's version
		}
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		lines = append(lines, fmt.Sprintf("%s %s {%s}", name, strings.ToLower(f.GetType().String()), strings.Join(labels, ",")))
	}
	slices.Sort(lines)
	got := strings.Join(lines, "\n") + "\n"
	const golden = "testdata/metrics.txt"
	if *update {
		g.Expect(os.WriteFile(golden, []byte(got), 0o644)).To(Succeed())
	}
	want, err := os.ReadFile(golden)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(got).To(Equal(string(want)), "a renamed metric breaks dashboards; -update if it is meant")
	g.Expect(gather(t, m)).To(And(HaveKey("go_goroutines"), HaveKey("process_resident_memory_bytes")))
}

// TestDocumented: docs/operate.md names every metric, and none that is not there.
func TestDocumented(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	page, err := os.ReadFile("../../docs/operate.md")
	g.Expect(err).NotTo(HaveOccurred())
	golden, err := os.ReadFile("testdata/metrics.txt")
	g.Expect(err).NotTo(HaveOccurred())
	var names []string
	for line := range strings.Lines(string(golden)) {
		names = append(names, strings.Fields(line)[0])
	}
	documented := regexp.MustCompile("`(husk_[a-z_]+)`").FindAllStringSubmatch(string(page), -1)
	var found []string
	for _, m := range documented {
		found = append(found, m[1])
	}
	g.Expect(found).To(ConsistOf(names))
}

func TestNamesFollowPrometheusPractice(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	m := metrics.New(options())
	exercise(m)
	families, err := m.Gather(t.Context())
	g.Expect(err).NotTo(HaveOccurred())
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(problems).To(BeEmpty())
}

func TestPulled(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	m := metrics.New(options())
	g.Expect(samples(t, m, "husk_pulls_total")).To(Equal(map[string]float64{"kata,ok": 0}), "there before the first pull")
	result := manifestonly.Result{Record: imageref.Record{LayerBytes: 5 << 20}, Stats: manifestonly.Stats{Requests: 4, Bytes: 900}}
	m.Pulled("kata", metrics.OK, time.Second, result)
	m.Pulled("kata", metrics.OK, time.Second, result)
	m.Pulled("kata", errdefs.Unauthorized.String(), time.Second, manifestonly.Result{
		Record: imageref.Record{LayerBytes: 7}, Stats: manifestonly.Stats{Requests: 2, Bytes: 10}})
	g.Expect(samples(t, m, "husk_pulls_total")).To(Equal(map[string]float64{"kata,ok": 2, "kata,unauthorized": 1}))
	g.Expect(samples(t, m, "husk_pull_seconds")).To(HaveKeyWithValue("kata", 3.0))
	g.Expect(samples(t, m, "husk_pull_registry_requests_total")).To(HaveKeyWithValue("", 10.0))
	g.Expect(samples(t, m, "husk_pull_registry_bytes_total")).To(HaveKeyWithValue("", 1810.0))
	g.Expect(samples(t, m, "husk_layer_bytes_not_read_total")).To(HaveKeyWithValue("", float64(10<<20)), "of successful pulls alone")
}

func TestPullsInProgress(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	m := metrics.New(options())
	first, second := m.PullStarted(), m.PullStarted()
	g.Expect(samples(t, m, "husk_pulls_in_progress")).To(HaveKeyWithValue("", 2.0))
	first()
	second()
	g.Expect(samples(t, m, "husk_pulls_in_progress")).To(HaveKeyWithValue("", 0.0))
}

// TestLabelsAreBounded makes up names as a client could: none becomes a series.
func TestLabelsAreBounded(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	m := metrics.New(options())
	for i := range 1000 {
		m.Forwarded(fmt.Sprintf("/evil.v1.Service/Method%d", i), codes.Code(i))
		m.Pulled(fmt.Sprintf("handler%d", i), fmt.Sprintf("outcome%d", i), time.Second, manifestonly.Result{})
	}
	m.Forwarded(listMethod, codes.NotFound)
	forwarded := samples(t, m, "husk_forwarded_calls_total")
	g.Expect(forwarded).To(HaveLen(18), "17 codes of other, and one")
	g.Expect(forwarded).To(HaveKeyWithValue("Unknown,other", 1000.0-16))
	g.Expect(forwarded).To(HaveKeyWithValue("NotFound,runtime.v1.RuntimeService/ListContainers", 1.0))
	g.Expect(samples(t, m, "husk_pulls_total")).To(Equal(map[string]float64{"kata,ok": 0, "other,internal": 1000}))

	m.SetHandlers([]string{"husk"})
	m.Pulled("husk", metrics.OK, time.Second, manifestonly.Result{})
	m.Pulled("kata", metrics.OK, time.Second, manifestonly.Result{})
	g.Expect(samples(t, m, "husk_pulls_total")).To(And(
		HaveKeyWithValue("husk,ok", 1.0), HaveKeyWithValue("kata,ok", 0.0), HaveKeyWithValue("other,ok", 1.0)))
}

func TestReloads(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	m := metrics.New(options())
	m.Reloaded(nil)
	m.Reloaded(errors.New("unknown key"))
	m.Reloaded(errors.New("unknown key"))
	g.Expect(samples(t, m, "husk_config_reloads_total")).To(Equal(map[string]float64{"ok": 1, "error": 2}))
}

func TestRecords(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	m := metrics.New(options())
	g.Expect(samples(t, m, "husk_records")).To(Equal(map[string]float64{"": 2}))
	g.Expect(samples(t, m, "husk_records_bytes")).To(Equal(map[string]float64{"": 1234}))
	g.Expect(samples(t, m, "husk_scrape_errors_total")).To(Equal(map[string]float64{"": 0}))
	g.Expect(samples(t, m, "husk_build_info")).To(Equal(map[string]float64{"1.2.3": 1}))
}

func TestRecordsThatCannotBeCounted(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	o := options()
	o.Records = records(func(context.Context) ([]imageref.Record, error) { return nil, errors.New("the store is broken") })
	m := metrics.New(o)
	families := gather(t, m)
	g.Expect(families).NotTo(HaveKey("husk_records"), "a zero would be a lie")
	g.Expect(families).NotTo(HaveKey("husk_records_bytes"))
	g.Expect(families["husk_scrape_errors_total"].GetMetric()[0].GetCounter().GetValue()).To(Equal(1.0), "in the same scrape")
	g.Expect(families).To(HaveKey("husk_pulls_total"), "the rest is there")
}

// TestStuckStore scrapes a store that never answers and does not listen to its
// context: every scrape comes back, and only one goroutine is stuck.
func TestStuckStore(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	asked, release := make(chan struct{}, 16), make(chan struct{})
	o := options()
	o.Records = records(func(ctx context.Context) ([]imageref.Record, error) {
		asked <- struct{}{}
		<-release
		return twoRecords(ctx)
	})
	m := metrics.New(o)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	for i := range 3 {
		families, err := m.Gather(ctx)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(families).NotTo(BeEmpty(), "scrape %d", i)
	}
	g.Eventually(asked, "10s").Should(Receive())
	g.Expect(asked).NotTo(Receive(), "one question at a time")
	close(release)
	g.Expect(samples(t, m, "husk_records")).To(Equal(map[string]float64{"": 2}), "it recovers")
	g.Expect(samples(t, m, "husk_scrape_errors_total")).To(Equal(map[string]float64{"": 3}))
}

// TestScrapeIsBounded leaves the bound to Gather itself.
func TestScrapeIsBounded(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	o := options()
	o.Records = records(func(ctx context.Context) ([]imageref.Record, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	m := metrics.New(o)
	done := make(chan map[string]float64, 1)
	go func() { done <- samples(t, m, "husk_scrape_errors_total") }()
	g.Eventually(done, "30s").Should(Receive(Equal(map[string]float64{"": 1})))
}
