package katavolume

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/husk-cri/husk/pkg/errdefs"
)

const opDecode = "decode kata volume"

func tooLong(op string, encoded int) error {
	if encoded > maxEncoded {
		return errdefs.Newf(errdefs.TooLarge, op, "%d bytes, more than %d", encoded, maxEncoded)
	}
	return nil
}

func decode(value string) (Volume, error) {
	if err := tooLong(opDecode, len(value)); err != nil {
		return Volume{}, err
	}
	// Go's decoder skips line breaks, Rust's does not.
	if strings.ContainsAny(value, "\r\n") {
		return Volume{}, errdefs.Newf(errdefs.InvalidArgument, opDecode, "illegal base64: a line break")
	}
	data, err := base64.StdEncoding.Strict().DecodeString(value)
	if err != nil {
		return Volume{}, errdefs.New(errdefs.InvalidArgument, opDecode, err)
	}
	if !utf8.Valid(data) { // encoding/json would put another character there
		return Volume{}, errdefs.Newf(errdefs.InvalidArgument, opDecode, "the JSON is not UTF-8")
	}
	var v Volume
	if err := json.Unmarshal(data, &v); err != nil {
		return Volume{}, errdefs.New(errdefs.InvalidArgument, opDecode, err)
	}
	if err := checkObject("", data, reflect.TypeFor[Volume]()); err != nil {
		return Volume{}, errdefs.New(errdefs.InvalidArgument, opDecode, err)
	}
	if err := v.validate(); err != nil {
		return Volume{}, err
	}
	return v, nil
}

// checkObject refuses an object that Kata's two shims read differently: encoding/json takes
// a key in any case, the last one of two, and null for nothing; serde takes none of
// these. Keys that neither knows are left to them. Data is valid JSON of that type, and
// name is the object's field, which the errors begin with.
func checkObject(name string, data []byte, of reflect.Type) error {
	fields := map[string]reflect.Type{}
	for field := range of.Fields() {
		key, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		fields[key] = field.Type
	}
	members := json.NewDecoder(bytes.NewReader(data))
	if _, err := members.Token(); err != nil { // its brace
		return err
	}
	seen := map[string]bool{}
	for members.More() {
		token, err := members.Token()
		if err != nil {
			return err
		}
		key, _ := token.(string)
		var value json.RawMessage
		if err := members.Decode(&value); err != nil {
			return err
		}
		as := known(fields, key)
		if as == "" {
			continue
		}
		path := strings.TrimPrefix(name+"."+as, ".")
		if key != as {
			return fmt.Errorf("%s: written as %q", path, key)
		}
		if seen[key] {
			return fmt.Errorf("%s: twice", path)
		}
		seen[key] = true
		if err := checkValue(path, value, fields[key]); err != nil {
			return err
		}
	}
	return nil
}

// known returns the field that encoding/json takes a key for, "" when there is none.
func known(fields map[string]reflect.Type, key string) string {
	if _, ok := fields[key]; ok {
		return key
	}
	for field := range fields {
		if strings.EqualFold(field, key) {
			return field
		}
	}
	return ""
}

// checkValue refuses null where the Rust shim does: only a whole object may be null.
func checkValue(path string, value json.RawMessage, as reflect.Type) error {
	null := string(value) == "null"
	switch as.Kind() {
	case reflect.Pointer:
		if null {
			return nil
		}
		return checkObject(path, value, as.Elem())
	case reflect.Slice:
		var all []*string
		if err := json.Unmarshal(value, &all); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if i := slices.Index(all, nil); i >= 0 {
			return fmt.Errorf("%s[%d]: null", path, i)
		}
	case reflect.Map:
		var all map[string]*string
		if err := json.Unmarshal(value, &all); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		for key, one := range all {
			if one == nil {
				return fmt.Errorf("%s: %q is null", path, key)
			}
		}
	default:
	}
	if null {
		return fmt.Errorf("%s: null", path)
	}
	return nil
}
