package fakeregistry_test

import (
	"errors"
	"net/http"
	"testing"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
)

func TestRunOutsideATest(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	var url string
	failed := errors.New("failed")
	err := fakeregistry.Run(t.Context(), func(tb fakeregistry.TB) error {
		seen := make(chan fakeregistry.Request, 1)
		r := fakeregistry.New(tb, fakeregistry.Options{Log: func(q fakeregistry.Request) { seen <- q }})
		url = r.URL()
		code, _, err := get(t, url+"/v2/", nil)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(code).To(Equal(http.StatusOK))
		g.Expect(<-seen).To(And(HaveField("Path", "/v2/"), HaveField("Status", 200)))
		return failed
	})
	g.Expect(err).To(MatchError(failed))
	_, _, err = get(t, url+"/v2/", nil)
	g.Expect(err).To(HaveOccurred(), "the registry has ended")

	err = fakeregistry.Run(t.Context(), func(tb fakeregistry.TB) error {
		tb.Fatalf("no %s", "luck")
		return nil
	})
	g.Expect(err).To(MatchError("no luck"))
}
