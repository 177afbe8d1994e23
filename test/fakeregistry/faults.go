package main

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
)

// faultFlag is one --fault. Matches: any, ping, token, lookaside, manifest[:REF],
// blob[:DIGEST]. Faults: status:CODE, too-many:SECONDS, hang, drop, corrupt,
// cut-headers, cut-body:BYTES, drip:PAUSE, big:BYTES. "*2" is: twice, then honest.
type faultFlag struct {
	match fakeregistry.Match
	fault fakeregistry.Fault
}

func parseFault(v string) (faultFlag, error) {
	where, what, ok := strings.Cut(v, "=")
	if !ok {
		return faultFlag{}, fmt.Errorf("%q: want match=fault", v)
	}
	match, err := parseMatch(where)
	if err != nil {
		return faultFlag{}, err
	}
	what, times, limited := strings.Cut(what, "*")
	kind, value, _ := strings.Cut(what, ":")
	fault, err := newFault(kind, value)
	if err != nil {
		return faultFlag{}, err
	}
	if limited {
		n, err := strconv.Atoi(times)
		if err != nil {
			return faultFlag{}, fmt.Errorf("%q: %w", v, err)
		}
		fault = fakeregistry.Times(n, fault)
	}
	return faultFlag{match, fault}, nil
}

func parseMatch(where string) (fakeregistry.Match, error) {
	kind, name, _ := strings.Cut(where, ":")
	switch kind {
	case "any":
		return fakeregistry.Any, nil
	case "ping":
		return fakeregistry.Ping, nil
	case "token":
		return fakeregistry.Token, nil
	case "lookaside":
		return fakeregistry.Lookaside, nil
	case "manifest":
		return fakeregistry.Manifest(name), nil
	case "blob":
		return fakeregistry.Blob(name), nil
	}
	return nil, fmt.Errorf("unknown match %q", kind)
}

func newFault(kind, value string) (fakeregistry.Fault, error) {
	switch kind {
	case "hang":
		return fakeregistry.Hang(), nil
	case "drop":
		return fakeregistry.Drop(), nil
	case "corrupt":
		return fakeregistry.Corrupt(), nil
	case "cut-headers":
		return fakeregistry.CutHeaders(), nil
	case "too-many":
		return fakeregistry.TooMany(value), nil
	case "drip":
		pause, err := time.ParseDuration(value)
		if err == nil && pause <= 0 {
			err = fmt.Errorf("a pause of %s is none", pause)
		}
		return fakeregistry.Drip(pause), err
	}
	n, err := strconv.Atoi(value)
	if err != nil {
		return nil, fmt.Errorf("fault %q: %w", kind, err)
	}
	switch kind {
	case "status":
		return fakeregistry.Status(n, http.StatusText(n)), nil
	case "cut-body":
		return fakeregistry.CutBody(n), nil
	case "big":
		return fakeregistry.Big(http.StatusOK, "application/vnd.oci.image.manifest.v1+json", int64(n)), nil
	}
	return nil, fmt.Errorf("unknown fault %q", kind)
}
