package keys

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// Provider is one key provider: somebody who unwraps keys, or wraps them, on request.
type Provider struct {
	name  string
	path  string
	args  []string
	grpc  string
	ttrpc string
}

// The ways to reach a provider.
const (
	methodCommand = "cmd"
	methodGRPC    = "grpc"
	methodTTRPC   = "ttrpc"
	methodNone    = "no usable method"
)

// method is how the provider is reached. Where its configuration has several, the
// order is that of ocicrypt.
func (p Provider) method() string {
	switch {
	case p.path != "":
		return methodCommand
	case p.grpc != "":
		return methodGRPC
	case p.ttrpc != "":
		return methodTTRPC
	}
	return methodNone
}

// LoadProviders reads an ocicrypt_keyprovider.conf, the JSON of ocicrypt and
// ocicrypt-rs. The result is by name. "" and a missing file have no providers. A provider
// that has none of cmd, grpc and ttrpc (ocicrypt-rs knows "native") fails when a
// layer names it, not here.
//
// Errors: InvalidArgument, TooLarge, Internal.
func LoadProviders(path string) (map[string]Provider, error) {
	if path == "" {
		return nil, nil
	}
	op := "read key providers " + path
	data, err := readBounded(path, maxConfigBytes)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, errdefs.New(errdefs.KindOf(err), op, causeOf(err))
	}
	providers, err := parseProviders(data)
	if err != nil {
		return nil, errdefs.New(errdefs.InvalidArgument, op, err)
	}
	return providers, nil
}

// providersFile is the JSON. Unknown members are passed over, as ocicrypt does.
type providersFile struct {
	Providers map[string]struct {
		Command *struct {
			Path string   `json:"path"`
			Args []string `json:"args"`
		} `json:"cmd"`
		GRPC  string `json:"grpc"`
		TTRPC string `json:"ttrpc"`
	} `json:"key-providers"`
}

func parseProviders(data []byte) (map[string]Provider, error) {
	var file providersFile
	if err := json.Unmarshal(data, &file); err != nil {
		return nil, err
	}
	if n := len(file.Providers); n > maxProviders {
		return nil, fmt.Errorf("%d key providers, the limit is %d", n, maxProviders)
	}
	providers := make(map[string]Provider, len(file.Providers))
	for name, entry := range file.Providers {
		if name == "" || len(name) > maxNameBytes {
			return nil, fmt.Errorf("a key provider's name has %d bytes", len(name))
		}
		p := Provider{name: name, grpc: entry.GRPC, ttrpc: entry.TTRPC}
		if entry.Command != nil {
			p.path, p.args = entry.Command.Path, entry.Command.Args
		}
		if err := p.check(); err != nil {
			return nil, fmt.Errorf("key provider %q: %w", name, err)
		}
		providers[name] = p
	}
	return providers, nil
}

const unixScheme = "unix://"

func (p *Provider) check() error {
	switch p.method() {
	case methodCommand:
		// A relative path would be found through a PATH or a working directory that
		// somebody else may choose, and runs with this process's rights.
		if !filepath.IsAbs(p.path) {
			return fmt.Errorf("the command's path %q is not absolute", p.path)
		}
		if len(p.args) > maxArgs {
			return fmt.Errorf("the command has %d arguments, the limit is %d", len(p.args), maxArgs)
		}
	case methodGRPC:
		// ocicrypt-rs takes these schemes, grpc-go does not.
		for _, scheme := range []string{"http://", "tcp://"} {
			p.grpc = strings.TrimPrefix(p.grpc, scheme)
		}
		if p.grpc == "" {
			return errors.New("the gRPC address is empty")
		}
	case methodTTRPC:
		path, ok := strings.CutPrefix(p.ttrpc, unixScheme)
		if !ok || !filepath.IsAbs(path) {
			return fmt.Errorf("the ttrpc address %q is not of the form unix:///path", p.ttrpc)
		}
	}
	return nil
}
