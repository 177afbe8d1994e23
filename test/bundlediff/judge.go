package main

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// absent is the value of a field that one side does not have.
const absent = "(absent)"

// The values of the field "outcome".
const (
	made    = "made"
	refused = "refused"
)

// side is what one side made of a combination.
type side struct {
	// refused is the error, "" when there is a container.
	refused string
	// spec is the runtime spec as the tree of its JSON.
	spec any
	// rootfs says what is at the paths the container has by the image or the request.
	rootfs map[string]string
	// home is HOME of the process when it runs.
	home string
}

// result is a combination and what came of it.
type result struct {
	combination
	stock, husk side
}

// difference is one field in which the sides are not alike.
type difference struct{ Field, Stock, Husk string }

func (d difference) String() string {
	return fmt.Sprintf("%s: stock %s, husk %s", d.Field, d.Stock, d.Husk)
}

// verdict is what came of all combinations: how many of each topic, and of how many there
// is a container; how many fields were compared, differ, and differ though they are not
// listed; how many changes of specs were tried on the comparison, and how many it saw.
type verdict struct {
	Topics                             map[string]int
	Combinations, Made, Compared       int
	Differences, Unlisted, Tried, Seen int
	Problems                           []string
	Listed                             []listedCount
}

// listedCount says how often a line of the table was needed.
type listedCount struct {
	Why                 string
	Fields, Occurrences int
}

// compare returns the differences of a result and how many fields were compared.
func compare(r result) (diffs []difference, compared int) {
	outcome := func(s side) string {
		if s.refused != "" {
			return refused
		}
		return made
	}
	if a, b := outcome(r.stock), outcome(r.husk); a != b {
		return []difference{{"outcome", a, b}}, 1
	}
	if r.stock.refused != "" {
		return nil, 1
	}
	return compareFields(allFields(r.stock), allFields(r.husk))
}

func compareFields(stock, husk fields) (diffs []difference, compared int) {
	compared = 1 + len(stock.values) + len(stock.orders) // and the outcome
	for name, a := range stock.values {
		if b := valueOf(husk, name); a != b {
			diffs = append(diffs, difference{name, a, b})
		}
	}
	for name, b := range husk.values {
		if !stock.hasValue(name) {
			diffs = append(diffs, difference{name, absent, b})
			compared++
		}
	}
	for name := range stock.orders {
		a, b := inBoth(stock.orders[name], husk.orders[name])
		if !slices.Equal(a, b) {
			diffs = append(diffs, difference{"order of " + name, strings.Join(a, " "), strings.Join(b, " ")})
		}
	}
	slices.SortFunc(diffs, func(a, b difference) int { return strings.Compare(a.Field, b.Field) })
	return diffs, compared
}

// allFields are the fields of the spec and of what is not in it.
func allFields(s side) fields {
	f := flatten(s.spec)
	for path, what := range s.rootfs {
		f.put(join("rootfs", path), what)
	}
	f.put("HOME of the process", s.home)
	return f
}

func valueOf(f fields, name string) string {
	if v, ok := f.values[name]; ok {
		return v
	}
	return absent
}

// inBoth returns the elements that both lists have, in the order of each: the other ones
// are fields that only one side has, and different already.
func inBoth(a, b []string) (ofA, ofB []string) {
	keep := func(list, other []string) []string {
		return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return !slices.Contains(other, s) })
	}
	return keep(a, b), keep(b, a)
}

// row is one line of the table of differences that are meant to be.
type row struct {
	// Fields are the names of the fields, or "outcome".
	Fields []string
	// In says in which combinations each of the fields differs so: in these, and in no other.
	// Nil is every one of which both sides make a container.
	In func(combination) bool
	// Stock and Husk match the whole values; [absent] is no field.
	Stock, Husk string
	// Why is the reason, for whoever relies on bundlegen.
	Why string
}

// covers reports whether the row lists d in the combination c.
func (r row) covers(c combination, d difference) bool {
	return slices.Contains(r.Fields, d.Field) && (r.In == nil || r.In(c)) && matches(r.Stock, d.Stock) && matches(r.Husk, d.Husk)
}

// in is the combinations of these names.
func in(names ...string) func(combination) bool {
	return func(c combination) bool { return slices.Contains(names, c.name()) }
}

func matches(pattern, value string) bool {
	if pattern == absent || value == absent {
		return pattern == value
	}
	return regexp.MustCompile(`^(?s:` + pattern + `)$`).MatchString(value)
}

// judge compares all results by the table.
func judge(results []result, table []row) verdict {
	v := verdict{Combinations: len(results), Topics: map[string]int{}}
	tried := map[string]bool{}
	found := map[string][]difference{}
	for _, r := range results {
		v.Topics[r.Topic]++
		diffs, compared := compare(r)
		v.Compared += compared
		v.Differences += len(diffs)
		found[r.name()] = diffs
		v.Problems = append(v.Problems, unexpected(r)...)
		for _, d := range diffs {
			if !slices.ContainsFunc(table, func(l row) bool { return l.covers(r.combination, d) }) {
				v.Unlisted++
				v.Problems = append(v.Problems, "not listed: "+r.name()+": "+d.String())
			}
		}
		if r.stock.refused != "" || r.husk.refused != "" {
			continue
		}
		v.Made++
		blind := selfCheck(r, tried)
		v.Seen -= len(blind)
		for _, b := range blind {
			v.Problems = append(v.Problems, "a change that is not seen: "+r.name()+": "+b)
		}
	}
	v.Tried, v.Seen = len(tried), v.Seen+len(tried)
	for _, l := range table {
		n, stale := occurrences(l, results, found)
		v.Problems = append(v.Problems, stale...)
		v.Listed = append(v.Listed, listedCount{l.Why, len(l.Fields), n})
	}
	return v
}

// unexpected says how an outcome is not the one that the combination is about: a container
// that is refused for another reason compares nothing.
func unexpected(r result) (problems []string) {
	for name, s := range map[string]struct{ got, want string }{
		"stock": {r.stock.refused, r.Stock}, "husk": {r.husk.refused, r.Husk},
	} {
		if (s.got == "") != (s.want == "") || !strings.Contains(s.got, s.want) {
			problems = append(problems, fmt.Sprintf("%s: %s said %q, want %q", r.name(), name, s.got, s.want))
		}
	}
	return problems
}

// occurrences counts where a row is needed, and says where it is not.
func occurrences(l row, results []result, found map[string][]difference) (n int, stale []string) {
	for _, field := range l.Fields {
		var missing []string
		before := n
		for _, r := range results {
			bothMade := r.stock.refused == "" && r.husk.refused == ""
			if (l.In == nil && !bothMade) || (l.In != nil && !l.In(r.combination)) {
				continue
			}
			if slices.ContainsFunc(found[r.name()], func(d difference) bool { return d.Field == field && l.covers(r.combination, d) }) {
				n++
			} else {
				missing = append(missing, r.name())
			}
		}
		if len(missing) > 0 || n == before {
			stale = append(stale, fmt.Sprintf("listed and not so: %s (%s) in %s", field, l.Why, cmp.Or(strings.Join(missing, ", "), "any combination")))
		}
	}
	return n, stale
}

// selfCheck changes each part of husk's spec, and each thing beside it, and returns the
// changes that the comparison did not see. What is in tried was tried with another
// combination, and is not again.
func selfCheck(r result, tried map[string]bool) (blind []string) {
	stock := allFields(r.stock)
	before, _ := compareFields(stock, allFields(r.husk))
	try := func(what string, changed side) {
		if tried[what] {
			return
		}
		tried[what] = true
		after, _ := compareFields(stock, allFields(changed))
		if slices.Equal(before, after) {
			blind = append(blind, what)
		}
	}
	for what, spec := range mutations(r.husk.spec) {
		changed := r.husk
		changed.spec = spec
		try(what, changed)
	}
	for path := range r.husk.rootfs {
		changed := r.husk
		changed.rootfs = maps.Clone(r.husk.rootfs)
		changed.rootfs[path] += " and more"
		try("rootfs "+path, changed)
	}
	changed := r.husk
	changed.home += "/more"
	try("HOME", changed)
	return blind
}
