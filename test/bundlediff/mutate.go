package main

import (
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"slices"
)

// mutations yields a tree with one change each, and its name: each scalar changed, each
// member and each element removed, each element doubled, and one more in each object and
// list. tree itself stays as it is.
func mutations(tree any) iter.Seq2[string, any] {
	return func(yield func(string, any) bool) { change("", tree, yield) }
}

// change yields the changes of v at a path; it returns false when no more are wanted.
func change(at string, v any, yield func(string, any) bool) bool {
	switch v := v.(type) {
	case map[string]any:
		return mutateObject(at, v, yield)
	case []any:
		return mutateList(at, v, yield)
	case string:
		return yield("change "+at, v+"x")
	case json.Number:
		return yield("change "+at, v+"1")
	case bool:
		return yield("change "+at, !v)
	}
	return yield("change "+at, "x")
}

func mutateObject(at string, object map[string]any, yield func(string, any) bool) bool {
	with := func(key string, value any) any {
		changed := maps.Clone(object)
		changed[key] = value
		return changed
	}
	for _, key := range slices.Sorted(maps.Keys(object)) {
		removed := maps.Clone(object)
		delete(removed, key)
		if !yield("remove "+at+"/"+key, removed) {
			return false
		}
		if !change(at+"/"+key, object[key], func(what string, value any) bool { return yield(what, with(key, value)) }) {
			return false
		}
	}
	return yield("add to "+at, with("of-tomorrow", "x"))
}

func mutateList(at string, list []any, yield func(string, any) bool) bool {
	for i, element := range list {
		place := fmt.Sprintf("%s/%d", at, i)
		if !yield("remove "+place, slices.Delete(slices.Clone(list), i, i+1)) || !yield("double "+place, slices.Insert(slices.Clone(list), i, element)) {
			return false
		}
		more := change(place, element, func(what string, value any) bool {
			changed := slices.Clone(list)
			changed[i] = value
			return yield(what, changed)
		})
		if !more {
			return false
		}
	}
	return yield("add to "+at, append(slices.Clone(list), "of-tomorrow"))
}
