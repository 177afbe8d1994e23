package imagers

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/husk-cri/husk/pkg/errdefs"
)

const (
	acceptAll = `{"default":[{"type":"insecureAcceptAnything"}]}`
	pemBegin  = "-----BEGIN "
	// maxPolicyKeys bounds the keys that a policy may have fetched, each of which is
	// a request to the key broker.
	maxPolicyKeys = 256
)

// policyFile is containers-policy.json(5) as far as it is changed here: requirements
// keep every field that is not.
type policyFile struct {
	Default    []requirement                       `json:"default"`
	Transports map[string]map[string][]requirement `json:"transports,omitempty"`
}

type requirement map[string]any

// policy writes policy.json.
func (w *writer) policy(ctx context.Context, c Config, registries registriesFile) error {
	data, err := w.either(ctx, c.PolicyURI, c.Policy)
	if err != nil {
		return err
	}
	if data == nil {
		return w.write("policy.json", []byte(acceptAll))
	}
	var p policyFile
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&p); err != nil {
		return errdefs.Newf(errdefs.InvalidArgument, "parse policy", "not a valid policy: %s", jsonReason(err))
	}
	if err := w.requirements(ctx, "default", p.Default); err != nil {
		return err
	}
	for _, transport := range sortedKeys(p.Transports) {
		for _, scope := range sortedKeys(p.Transports[transport]) {
			if err := w.requirements(ctx, fmt.Sprintf("scope %q of %s", scope, transport), p.Transports[transport][scope]); err != nil {
				return err
			}
		}
	}
	if err := checkScopes(p.Transports["docker"], registries); err != nil {
		return err
	}
	out, err := json.Marshal(p)
	if err != nil {
		return errdefs.New(errdefs.Internal, "write policy", err)
	}
	return w.write("policy.json", out)
}

// jsonReason says what is wrong with JSON without quoting it.
func jsonReason(err error) string {
	if _, field, ok := strings.Cut(err.Error(), "unknown field "); ok {
		return "unknown field " + field
	}
	return fmt.Sprintf("%T", err)
}

// requirements converts the requirements at one place of a policy.
func (w *writer) requirements(ctx context.Context, where string, list []requirement) error {
	const op = "check policy"
	if len(list) == 0 {
		// image-rs takes none for "accept"; containers/image for a mistake.
		return errdefs.Newf(errdefs.InvalidArgument, op, "%s has no requirement: write insecureAcceptAnything, or reject", where)
	}
	for _, r := range list {
		if path, ok := r["keyPath"].(string); ok {
			local, err := w.key(ctx, path)
			if err != nil {
				return errdefs.New(errdefs.KindOf(err), "key of "+where, err)
			}
			r["keyPath"] = local
		}
		// image-rs takes the PEM text itself; containers/image its base64.
		if data, ok := r["keyData"].(string); ok && strings.HasPrefix(strings.TrimSpace(data), pemBegin) {
			r["keyData"] = base64.StdEncoding.EncodeToString([]byte(data))
		}
	}
	return nil
}

// key returns the path of a key file, which is fetched where it is not local.
func (w *writer) key(ctx context.Context, path string) (string, error) {
	if local, ok := strings.CutPrefix(path, "file://"); ok {
		return local, nil
	}
	if !strings.Contains(path, "://") {
		return path, nil
	}
	if w.keys++; w.keys > maxPolicyKeys {
		return "", errdefs.Newf(errdefs.TooLarge, "fetch "+path, "more than %d keys", maxPolicyKeys)
	}
	data, err := w.fetch(ctx, path)
	if err != nil {
		return "", err
	}
	name := fmt.Sprintf("key-%d", w.keys)
	return w.path(name), w.write(name, data)
}

// checkScopes refuses a policy that image-rs would apply to more than containers/image
// does: image-rs matches scopes with the name after the mirror was put in, and
// containers/image with the image's own. A scope for a mirror alone would check nothing.
func checkScopes(scopes map[string][]requirement, registries registriesFile) error {
	covers := func(scope, place string) bool {
		return scope == place || strings.HasPrefix(scope, place+"/") || strings.HasPrefix(place, scope+"/")
	}
	any := func(place string) string {
		for _, scope := range sortedKeys(scopes) {
			if covers(scope, place) {
				return scope
			}
		}
		return ""
	}
	for _, r := range registries.Registry {
		name := r.Prefix
		if name == "" {
			name = r.Location
		}
		for _, place := range r.places() {
			scope := any(place)
			if place == "" || covers(place, name) || scope == "" || any(name) != "" {
				continue
			}
			return errdefs.Newf(errdefs.InvalidArgument, "check policy",
				"scope %q is that of a mirror of %s: image-rs applies it to what comes from the mirror, Husk only to images that are named so; write a scope for %s", scope, name, name)
		}
	}
	return nil
}

// registriesFile is the part of containers-registries.conf(5) that is looked at.
type registriesFile struct {
	Search   []string        `toml:"unqualified-search-registries"`
	Registry []registryTable `toml:"registry"`
}

type registryTable struct {
	Prefix   string        `toml:"prefix"`
	Location string        `toml:"location"`
	Mirror   []mirrorTable `toml:"mirror"`
}

type mirrorTable struct {
	Location string `toml:"location"`
}

// places are where an image of this registry may come from.
func (r registryTable) places() []string {
	places := []string{r.Location}
	for _, m := range r.Mirror {
		places = append(places, m.Location)
	}
	return places
}

// registries writes registries.conf and returns what it says.
func (w *writer) registries(ctx context.Context, c Config) (registriesFile, error) {
	data, err := w.registriesText(ctx, c)
	if err != nil {
		return registriesFile{}, err
	}
	var f registriesFile
	meta, err := toml.Decode(string(data), &f)
	if err != nil {
		return f, errdefs.New(errdefs.InvalidArgument, "parse registry configuration", parseError(err))
	}
	if !meta.IsDefined("unqualified-search-registries") { // image-rs's default; containers/image has none
		data = append([]byte("unqualified-search-registries = [\"docker.io\"]\n"), data...)
	}
	return f, w.write("registries.conf", data)
}

func (w *writer) registriesText(ctx context.Context, c Config) ([]byte, error) {
	if c.Registries == nil {
		return w.either(ctx, c.RegistriesURI, "")
	}
	var text bytes.Buffer
	if err := toml.NewEncoder(&text).Encode(c.Registries); err != nil {
		return nil, errdefs.New(errdefs.InvalidArgument, "write registry configuration", err)
	}
	return text.Bytes(), nil
}

// authEntry is one registry of an auth file.
type authEntry struct {
	Auth          string `json:"auth,omitempty"`
	IdentityToken string `json:"identitytoken,omitempty"`
}

// auth writes auth.json. Credential helpers are left out: image-rs has none, and the
// file may come from elsewhere and must not name programs to run.
func (w *writer) auth(ctx context.Context, uri string) error {
	in := struct {
		Auths map[string]authEntry `json:"auths"`
	}{Auths: map[string]authEntry{}}
	if uri != "" {
		data, err := w.fetch(ctx, uri)
		if err != nil {
			return err
		}
		if err := json.Unmarshal(data, &in); err != nil {
			return errdefs.Newf(errdefs.InvalidArgument, "parse credentials", "not a valid auth file (%T)", err)
		}
	}
	for _, host := range sortedKeys(in.Auths) {
		// containers/image would go on without credentials, image-rs refuses the file.
		if in.Auths[host].Auth == "" {
			return errdefs.Newf(errdefs.InvalidArgument, "check credentials", "the entry of %s has no auth", host)
		}
	}
	out, err := json.Marshal(in)
	if err != nil {
		return errdefs.New(errdefs.Internal, "write credentials", err)
	}
	return w.write("auth.json", out)
}
