package main

import (
	"encoding/base64"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// secretMark is a part of every password and token of the cases.
const secretMark = "-secret"

// secrets are what no log and no error may hold: what is in no other word, in the
// forms it was sent in.
func (w *world) secrets() []string {
	all := []string{secretMark}
	for _, r := range w.registries {
		all = append(all, r.IssuedTokens()...)
	}
	for _, user := range append(tenants(), fileUsers()...) {
		all = append(all, base64.StdEncoding.EncodeToString([]byte(user.Name+":"+user.Password)))
	}
	return all
}

// leaks looks for credentials in the logs of the node.
func (w *world) leaks() comparison {
	result := comparison{Topic: "logs", Name: "no credential", Stock: outcome{Class: classOK}, Husk: outcome{Class: classOK}}
	secrets := w.secrets()
	err := filepath.WalkDir(filepath.Join(w.rig.Dir, "log"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, s := range secrets {
			if strings.Contains(string(text), s) {
				result.Problems = append(result.Problems, filepath.Base(path)+" holds a credential")
				break
			}
		}
		return nil
	})
	if err != nil {
		result.Problems = append(result.Problems, err.Error())
	}
	return result
}
