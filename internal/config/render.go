package config

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
)

// Render writes the effective configuration as TOML: each key with what it does and
// where its value comes from. Keys without a value are commented out, with an example.
// Reading what it wrote gives the same Config. inForce has, by key, what crio.conf gives
// those that are not set; it may be nil.
func Render(w io.Writer, l Loaded, inForce map[string]string) error {
	r := &renderer{loaded: l, inForce: inForce}
	r.printf("# Husk's effective configuration. A key that is commented out is not set.\n")
	for _, name := range l.Files {
		r.printf("# Read: %s\n", comment(name))
	}
	for _, f := range topFields() {
		r.field(f, f.Key, valueOf(l.Config, f.Key))
	}
	for _, name := range slices.Sorted(maps.Keys(l.Config.Handlers)) {
		r.printf("\n[%s]\n", toml.Key{handlersKey, name})
		for _, f := range handlerFields() {
			r.field(f, handlersKey+"."+name+"."+f.Key, valueOf(l.Config.Handlers[name], f.Key))
		}
	}
	if len(l.Config.Handlers) == 0 {
		r.printf("\n# What Husk is to know of a handler beyond crio.conf.\n#[handlers.NAME]\n")
		for _, f := range handlerFields() {
			r.field(f, "", valueOf(Handler{}, f.Key))
		}
	}
	if r.err != nil {
		return fmt.Errorf("render configuration: %w", r.err)
	}
	_, err := w.Write(r.out.Bytes())
	return err
}

type renderer struct {
	loaded  Loaded
	inForce map[string]string
	out     bytes.Buffer
	err     error
}

func (r *renderer) printf(format string, args ...any) {
	_, _ = fmt.Fprintf(&r.out, format, args...) // a Buffer does not fail
}

// field writes one key; name is its whole name, by which its origin is known.
func (r *renderer) field(f Field, name string, value reflect.Value) {
	r.printf("\n# %s.\n# Not set: %s.", sentence(f.Doc), f.Zero)
	if f.Restart {
		r.printf(" A change takes effect at restart.")
	}
	if !value.IsZero() || r.loaded.Origins[name] != "" {
		r.printf(" From: %s.", comment(r.origin(name)))
	}
	r.printf("\n")
	if value.IsZero() {
		if now := r.inForce[name]; now != "" {
			r.printf("# In effect: %s.\n", comment(now))
		}
		r.printf("#%s = %s\n", f.Key, f.Example)
		return
	}
	text, err := toml.Marshal(map[string]any{f.Key: value.Interface()})
	if err != nil {
		r.err = err
	}
	r.printf("%s\n", bytes.TrimSpace(text))
}

// origin says where a value comes from.
func (r *renderer) origin(key string) string {
	if file := r.loaded.Origins[key]; file != "" {
		return file
	}
	if strings.HasPrefix(key, "registries_conf") {
		return "the environment"
	}
	return "default"
}

func sentence(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// comment keeps a file's name from ending the comment it stands in.
func comment(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, s)
}
