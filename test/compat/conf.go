package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/husk-cri/husk/internal/testkit/signing"
	"github.com/husk-cri/husk/test/internal/rig"
)

// entry is a [[registry]] of registries.conf.
type entry struct {
	Prefix       string   `toml:"prefix,omitempty"`
	Location     string   `toml:"location,omitempty"`
	Insecure     bool     `toml:"insecure,omitempty"`
	Blocked      bool     `toml:"blocked,omitempty"`
	ByDigestOnly bool     `toml:"mirror-by-digest-only,omitempty"`
	Mirrors      []mirror `toml:"mirror,omitempty"`
}

type mirror struct {
	Location string `toml:"location"`
	Insecure bool   `toml:"insecure,omitempty"`
	For      string `toml:"pull-from-mirror,omitempty"`
}

// conf is the node's configuration, which the cases add to. Both daemons read the
// same files.
type conf struct {
	entries     []entry
	search      []string
	aliases     map[string]string
	dropIns     map[string]any // of registries.conf.d, by file name
	insecure    []string       // crio.conf insecure_registries
	auths       map[string]string
	helpers     map[string]string
	policy      map[string][]signing.Requirement
	namespaces  map[string][]byte
	registriesD map[string][]byte
	certs       []func(dir string)
}

func newConf() conf {
	return conf{
		aliases: map[string]string{}, dropIns: map[string]any{}, auths: map[string]string{}, helpers: map[string]string{},
		policy:     map[string][]signing.Requirement{"": {signing.Accept()}},
		namespaces: map[string][]byte{}, registriesD: map[string][]byte{},
	}
}

// helperName is the credential helper, docker-credential-compat.
const helperName = "compat"

// helperScript answers for every host with one user.
const helperScript = `#!/bin/sh
[ "$1" = get ] || exit 1
read -r host
printf '{"ServerURL":"%s","Username":"helped","Secret":"helped-secret"}' "$host"
`

// write writes every file below the node's folder. registries.d and certs.d have
// no setting in crio.conf: both daemons look in their home first.
func (c *conf) write(r *rig.Rig) error {
	registries := map[string]any{"registry": append([]entry{{Location: r.Node.Registry.Address, Insecure: true}}, c.entries...)}
	// CRI-O, which has no terminal to ask at, takes every candidate whatever the mode.
	registries["short-name-mode"] = "enforcing"
	if len(c.search) > 0 {
		registries["unqualified-search-registries"] = c.search
	}
	home := filepath.Join(r.Dir, "home", ".config", "containers")
	auth := map[string]any{"auths": authEntries(c.auths), "credHelpers": c.helpers}
	crio := map[string]any{"crio": map[string]any{"image": map[string]any{
		"global_auth_file": authFile(r), "insecure_registries": c.insecure,
	}}}
	errs := []error{
		writeTOML(r.Node.CRIO.RegistriesConf, registries),
		writeTOML(filepath.Join(registriesConfDir(r), "10-aliases.conf"), map[string]any{"aliases": c.aliases}),
		writeTOML(filepath.Join(r.Node.CRIO.ConfigDir, "50-compat.conf"), crio),
		writeJSON(authFile(r), auth),
		writeFile(policyFile(r), signing.Policy(c.policy), 0o600),
		writeFile(filepath.Join(helperDir(r), "docker-credential-"+helperName), []byte(helperScript), 0o700),
	}
	for name, content := range c.dropIns {
		errs = append(errs, writeTOML(filepath.Join(registriesConfDir(r), name), content))
	}
	for name, content := range c.namespaces {
		errs = append(errs, writeFile(filepath.Join(r.Dir, "conf", "policies", name+".json"), content, 0o600))
	}
	for name, content := range c.registriesD {
		errs = append(errs, writeFile(filepath.Join(home, "registries.d", name+".yaml"), content, 0o600))
	}
	for _, certs := range c.certs {
		certs(filepath.Join(home, "certs.d"))
	}
	return errors.Join(errs...)
}

func registriesConfDir(r *rig.Rig) string { return filepath.Join(r.Dir, "conf", "registries.conf.d") }
func helperDir(r *rig.Rig) string         { return filepath.Join(r.Dir, "helpers") }
func policyFile(r *rig.Rig) string        { return filepath.Join(r.Dir, "conf", "policy.json") }
func authFile(r *rig.Rig) string          { return filepath.Join(r.Dir, "conf", "auth.json") }

// authEntries encodes "user:password" by scope as auth.json has it.
func authEntries(logins map[string]string) map[string]any {
	auths := map[string]any{}
	for scope, login := range logins {
		auths[scope] = map[string]string{"auth": base64.StdEncoding.EncodeToString([]byte(login))}
	}
	return auths
}

func writeTOML(path string, v any) error {
	var b bytes.Buffer
	if err := toml.NewEncoder(&b).Encode(v); err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	return writeFile(path, b.Bytes(), 0o600)
}

func writeJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	return writeFile(path, data, 0o600)
}

func writeFile(path string, content []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return os.WriteFile(path, content, mode)
}

// scope is a name without its tag or digest.
func scope(reference string) string {
	name, _, _ := strings.Cut(reference, "@")
	if i := strings.LastIndex(name, ":"); i > strings.LastIndex(name, "/") {
		name = name[:i]
	}
	return name
}
