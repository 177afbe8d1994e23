package main

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"

	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/bundlegen/bundles"
)

func TestRun(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	g := NewWithT(t)
	where := []string{"--root", t.TempDir(), "--runroot", t.TempDir()}
	call := func(args ...string) []byte {
		var out bytes.Buffer
		g.Expect(run(t.Context(), append(where, args...), &out)).To(Succeed())
		return out.Bytes()
	}
	var list []bundles.Container
	g.Expect(json.Unmarshal(call("pod", "web"), &list)).To(Succeed())
	g.Expect(list).To(HaveLen(1))
	g.Expect(call("list")).To(MatchJSON(call("list")))
	var bundle string
	g.Expect(json.Unmarshal(call("finish", list[0].ID), &bundle)).To(Succeed())
	g.Expect(bundle).To(BeADirectory())
	call("remove", list[0].ID)
	g.Expect(call("list")).To(MatchJSON("[]"))
	g.Expect(call("check")).To(MatchJSON("[]"))
	for _, args := range [][]string{{}, {"pod"}, {"pod", "x", "no-record"}, {"finish"}, {"remove"}, {"fly"}} {
		g.Expect(run(t.Context(), append(where, args...), &bytes.Buffer{})).NotTo(Succeed(), "%v", args)
	}
}
