package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// fields are the parts of a runtime spec that are compared, each by a name. Whatever is in
// a spec is in a field: one that this file does not know is taken apart as it comes.
type fields struct {
	values map[string]string
	// orders are the names of lists whose elements are fields of their own.
	orders map[string][]string
	// elements counts those of one name in lists.
	elements map[string]int
}

// decode returns v as the tree that its JSON is.
func decode(v any) (any, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return decodeJSON(data)
}

func decodeJSON(data []byte) (any, error) {
	var tree any
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	return tree, dec.Decode(&tree)
}

func flatten(tree any) fields {
	f := fields{values: map[string]string{}, orders: map[string][]string{}, elements: map[string]int{}}
	f.add("", tree)
	return f
}

// environment is the list of variables.
const environment = "process.env"

// keyOf returns how the name of an element of a list is found; nil for a list whose
// elements have none.
func keyOf(list string) func(any) (string, any) {
	switch list {
	case environment:
		return variable
	case "mounts":
		return member("destination")
	case "linux.namespaces":
		return member("type")
	case "linux.devices":
		return member("path")
	}
	if isSet(list) {
		return func(v any) (string, any) { return text(v), true }
	}
	return nil
}

// isSet reports whether the runtime takes a list for a set.
func isSet(list string) bool {
	switch list {
	case "linux.maskedPaths", "linux.readonlyPaths", "linux.namespaces", "linux.devices":
		return true
	}
	return strings.HasPrefix(list, "process.capabilities.")
}

// whole is compared in one piece: it is a program, not settings.
const whole = "linux.seccomp"

func (f fields) add(name string, v any) {
	switch v := v.(type) {
	case map[string]any:
		if len(v) == 0 || name == whole {
			f.put(name, text(v))
			return
		}
		for key, value := range v {
			f.add(join(name, key), value)
		}
	case []any:
		f.addList(name, v)
	default:
		f.put(name, text(v))
	}
}

func (f fields) addList(name string, list []any) {
	key := keyOf(name)
	if key == nil || len(list) == 0 {
		f.put(name, text(list))
		return
	}
	if name == environment {
		f.addEnvironment(list)
		return
	}
	for _, element := range list {
		k, value := key(element)
		f.add(f.element(name+"["+k+"]"), value)
		if !isSet(name) {
			f.orders[name] = append(f.orders[name], k)
		}
	}
}

// addEnvironment adds the variables with the values that the process gets: of a variable
// that is there twice the last one, as runc sets them one after the other. The values
// before it are a field of their own.
func (f fields) addEnvironment(list []any) {
	values := map[string][]any{}
	for _, element := range list {
		name, value := variable(element)
		if _, again := values[name]; !again {
			f.orders[environment] = append(f.orders[environment], name)
		}
		values[name] = append(values[name], value)
	}
	for name, all := range values {
		last := len(all) - 1
		f.put(environment+"["+name+"]", text(all[last]))
		if last > 0 {
			f.put("replaced "+environment+"["+name+"]", text(all[:last]))
		}
	}
}

// put never loses a value that is there already.
func (f fields) put(name, value string) {
	for f.hasValue(name) {
		name += "#"
	}
	f.values[name] = value
}

func (f fields) hasValue(name string) bool {
	_, ok := f.values[name]
	return ok
}

// element names an element of a list; the second of one name gets a number.
func (f fields) element(name string) string {
	f.elements[name]++
	if n := f.elements[name]; n > 1 {
		return fmt.Sprintf("%s#%d", name, n)
	}
	return name
}

// join names a member. Annotations have dots in their own names.
func join(name, key string) string {
	switch name {
	case "":
		return key
	case "annotations", "rootfs", "linux.sysctl":
		return name + "[" + key + "]"
	}
	return name + "." + key
}

// variable is an element of the environment; one that is no variable has no value.
func variable(v any) (string, any) {
	s, ok := v.(string)
	if !ok {
		return text(v), nil
	}
	name, value, ok := strings.Cut(s, "=")
	if !ok {
		return s, nil
	}
	return name, value
}

// member names an element by one of its members, which is then no field of its own. An
// element without one is named by all it has.
func member(key string) func(any) (string, any) {
	return func(v any) (string, any) {
		object, ok := v.(map[string]any)
		if !ok {
			return text(v), true
		}
		name, ok := object[key].(string)
		if !ok {
			return text(v), true
		}
		rest := map[string]any{}
		for k, value := range object {
			if k != key {
				rest[k] = value
			}
		}
		return name, rest
	}
}

func text(v any) string {
	switch v := v.(type) {
	case string:
		return strconv.Quote(v)
	case json.Number:
		return v.String()
	case bool:
		return strconv.FormatBool(v)
	}
	data, err := json.Marshal(v) // sorts the keys
	if err != nil {
		return fmt.Sprintf("%#v", v)
	}
	return string(data)
}
