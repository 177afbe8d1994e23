package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
)

// handler is the guest-pull handler of the node.
const handler = "husk"

// seen is a request as it is compared: the same for both, but for connections and
// times.
type seen struct {
	Registry string
	Method   string
	Path     string
	Scheme   string `json:",omitempty"`
	User     string `json:",omitempty"`
	Status   int
}

func (s seen) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s: %s %s %d %s %s", s.Registry, s.Method, s.Path, s.Status, s.Scheme, s.User))
}

// comparison is what both did in one case.
type comparison struct {
	Topic, Name string
	Stock, Husk outcome
	// Differs says why Husk is meant to differ, where it is.
	Differs string `json:",omitempty"`
	// Problems are empty when all is as it should be.
	Problems []string
}

func (w *world) compareAll(ctx context.Context, cases []testCase) []comparison {
	results := make([]comparison, 0, len(cases))
	for _, c := range cases {
		results = append(results, w.compare(ctx, c))
	}
	return results
}

// compare pulls through stock CRI-O, then through Husk.
func (w *world) compare(ctx context.Context, c testCase) comparison {
	result := comparison{Topic: c.Topic, Name: c.Name}
	for _, side := range []struct {
		name    string
		client  *client
		handler string
		outcome *outcome
	}{{"stock", w.stock, "", &result.Stock}, {"husk", w.husk, handler, &result.Husk}} {
		for _, r := range w.registries {
			r.Forget()
		}
		var asked []seen
		if c.arm != nil {
			c.arm()
		}
		if c.create != nil {
			w.setPolicy(c.create.scope, c.create.before)
		}
		got, err := side.client.do(ctx, c.pull, side.handler, func(ctx context.Context, i *cri.Image) error {
			asked = w.collect() // what a pod asks for later is not the host's
			if c.create == nil {
				return nil
			}
			return w.make(ctx, side.client, c, side.handler, i)
		})
		if err != nil {
			result.Problems = append(result.Problems, fmt.Sprintf("%s: %v", side.name, err))
		}
		got.Requests = asked
		if asked == nil {
			got.Requests = w.collect()
		}
		got.User = identity(got.Requests, c.From)
		*side.outcome = got
	}
	result.Problems = append(result.Problems, w.judge(c, result.Stock, result.Husk)...)
	if c.Differs != nil {
		result.Differs = c.Differs.Why
	}
	return result
}

// collect returns what the registries were asked, grouped by registry.
func (w *world) collect() []seen {
	var all []seen
	for _, name := range slices.Sorted(maps.Keys(w.registries)) {
		for _, q := range w.registries[name].Requests() {
			all = append(all, view(name, q))
		}
	}
	return all
}

func view(registry string, q fakeregistry.Request) seen {
	s := seen{Registry: registry, Method: q.Method, Path: q.Path, Scheme: q.Scheme, User: q.User, Status: q.Status}
	if scopes := q.Query["scope"]; len(scopes) > 0 {
		s.Path += "?scope=" + strings.Join(scopes, ",")
	}
	if q.ClientCert != "" {
		s.User = strings.TrimSpace(s.User + " cert:" + q.ClientCert)
	}
	return s
}

// identity is who got the manifest from a registry, or tried to last.
func identity(requests []seen, registry string) string {
	user := ""
	for _, q := range requests {
		if q.Registry == registry && strings.Contains(q.Path, "/manifests/") {
			user = q.User
		}
	}
	return user
}

// judge says what is not as it should be.
func (w *world) judge(c testCase, stock, husk outcome) []string {
	var problems []string
	check := func(what string, got, want any) {
		if fmt.Sprint(got) != fmt.Sprint(want) {
			problems = append(problems, fmt.Sprintf("%s: %v, want %v", what, got, want))
		}
	}
	wantHusk, wantUser := c.Want, c.User
	if d := c.Differs; d != nil && d.Want != "" {
		wantHusk, wantUser = d.Want, d.User
	}
	check("stock outcome", stock.Class, c.Want)
	check("husk outcome", husk.Class, wantHusk)
	if c.create != nil {
		check("what husk passes on of stock's answer", husk.Message, stock.Message)
		check("code", husk.Code, stock.Code)
	} else if want, ok := huskCodes()[husk.Class]; ok {
		check("code that kubelet gets from husk", husk.Code, want)
	}
	if c.create == nil && husk.Code == codes.Unknown.String() && !hasSentinel(husk.Message) {
		problems = append(problems, "husk answers with code Unknown and no sentinel")
	}
	if c.From != "" {
		check("identity of stock at "+c.From, stock.User, c.User)
		check("identity of husk at "+c.From, husk.User, wantUser)
		for name, o := range map[string]outcome{"stock": stock, "husk": husk} {
			if o.Class == classOK {
				check("where "+name+" got the manifest", answeredBy(o.Requests), c.From)
			}
		}
	}
	if stock.Class == classOK && husk.Class == classOK {
		check("image ID", husk.ID, stock.ID)
		check("tags", husk.Tags, stock.Tags)
		check("digests", husk.Digests, stock.Digests)
	}
	if strings.Contains(husk.Message, secretMark) {
		problems = append(problems, "husk's error holds a credential")
	}
	for _, q := range append(slices.Clone(stock.Requests), husk.Requests...) {
		if q.Registry == c.Secret && q.Scheme != "" {
			problems = append(problems, "credentials were sent to "+q.String())
		}
	}
	for _, q := range husk.Requests {
		if w.isLayer(q) {
			problems = append(problems, "husk asked for a layer: "+q.String())
		}
	}
	if d := c.Differs; d != nil {
		if d.Absent != "" && slices.ContainsFunc(husk.Requests, func(q seen) bool { return q.Registry == d.Absent }) {
			problems = append(problems, "husk asked "+d.Absent)
		}
		return problems
	}
	return append(problems, w.differences(stock.Requests, husk.Requests)...)
}

// huskCodes is the gRPC code of each class in Husk's answers. Unknown is right
// where kubelet looks for a sentinel at the start of the text.
func huskCodes() map[string]string {
	return map[string]string{
		classOK: "OK", classPolicy: "Unknown", classRefused: "Unknown", classTLS: "Unknown", classDenied: "Unauthenticated",
		classMissing: "NotFound", classPlatform: "NotFound", className: "InvalidArgument", classDigest: "DataLoss", classLarge: "ResourceExhausted", classArtifact: "InvalidArgument",
	}
}

// hasSentinel reports whether kubelet finds an error of the CRI in the text.
func hasSentinel(text string) bool {
	return strings.HasPrefix(text, crierrors.ErrRegistryUnavailable.Error()+":") ||
		strings.HasPrefix(text, crierrors.ErrSignatureValidationFailed.Error()+":")
}

// answeredBy is the registry that served the first manifest.
func answeredBy(requests []seen) string {
	var by []string
	for _, q := range requests {
		if strings.Contains(q.Path, "/manifests/") && !strings.HasSuffix(q.Path, ".sig") && q.Status == 200 && !slices.Contains(by, q.Registry) {
			by = append(by, q.Registry)
		}
	}
	return strings.Join(by, ", ")
}

func (w *world) isLayer(q seen) bool {
	for d := range w.layers {
		if strings.HasSuffix(q.Path, "/"+d.String()) {
			return true
		}
	}
	return false
}

// differences compares the requests but for those of layers: each that stock CRI-O
// makes Husk makes too, and none more often.
func (w *world) differences(stock, husk []seen) []string {
	count := func(requests []seen) map[string]int {
		n := map[string]int{}
		for _, q := range requests {
			if !w.isLayer(q) {
				n[q.String()]++
			}
		}
		return n
	}
	a, b := count(stock), count(husk)
	var problems []string
	for _, q := range slices.Sorted(maps.Keys(a)) {
		if b[q] == 0 {
			problems = append(problems, "only stock asks "+q)
		}
	}
	for _, q := range slices.Sorted(maps.Keys(b)) {
		switch {
		case a[q] == 0:
			problems = append(problems, "only husk asks "+q)
		case b[q] > a[q]:
			problems = append(problems, fmt.Sprintf("stock asks %d times, husk %d times: %s", a[q], b[q], q))
		}
	}
	return problems
}
