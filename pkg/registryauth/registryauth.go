// Package registryauth has the registry credentials of one pull: what a CRI AuthConfig
// says, in a type that prints no secret.
package registryauth

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"

	"github.com/containers/image/v5/types"
)

// Credentials are those of one CRI AuthConfig. They are used for one pull and
// never stored. The zero value is none: the node's own auth files then apply.
// However a value is formatted, it prints no secret.
type Credentials struct {
	// Username and Password are for basic authentication or a token service.
	Username, Password string
	// Auth is base64("username:password"); where set, it wins over the pair, as
	// it does in CRI-O.
	Auth string
	// IdentityToken is an OAuth2 refresh token, traded for an access token.
	IdentityToken string
	// RegistryToken is a bearer token that is sent to the registry as it is.
	RegistryToken string
}

const hidden = "REDACTED"

// IsZero reports whether there are no credentials at all.
func (c Credentials) IsZero() bool { return c == Credentials{} }

// Pair returns the user name and password to use, taken from Auth where it is
// set. Its error never repeats what could not be decoded.
func (c Credentials) Pair() (username, password string, err error) {
	if c.Auth == "" {
		return c.Username, c.Password, nil
	}
	raw, err := base64.StdEncoding.DecodeString(c.Auth)
	if err != nil {
		return "", "", errors.New("credentials: auth is not base64")
	}
	user, pass, ok := strings.Cut(string(raw), ":")
	if !ok { // as in CRI-O, and in docker: no credentials
		return "", "", nil
	}
	// Docker pads the password with NUL bytes; CRI-O strips them too.
	return user, strings.Trim(pass, "\x00"), nil
}

// Apply makes containers/image use the credentials, in place of the node's auth files.
// Zero changes nothing. Its error never repeats what could not be decoded.
func (c Credentials) Apply(sys *types.SystemContext) error {
	username, password, err := c.Pair()
	if err != nil {
		return err
	}
	sys.DockerBearerRegistryToken = c.RegistryToken
	// An empty DockerAuthConfig beside a registry token is not in vain: without one
	// containers/image sends the token to the mirrors too, whoever runs them.
	if username != "" || c.IdentityToken != "" || c.RegistryToken != "" {
		sys.DockerAuthConfig = &types.DockerAuthConfig{IdentityToken: c.IdentityToken}
		if username != "" { // as CRI-O: a password without a name is none
			sys.DockerAuthConfig.Username, sys.DockerAuthConfig.Password = username, password
		}
	}
	return nil
}

// Open is [Credentials] that a JSON encoder does not hide: it is for the pipe to a
// child of package sandbox and nothing else.
type Open Credentials

// Scrub returns err with every secret of c replaced in its text, quoted or escaped for
// a URL as well. A registry may echo what it was sent, so what it says is not safe to
// repeat. The chain behind err stays reachable for errors.As.
func (c Credentials) Scrub(err error) error {
	if err == nil || c.IsZero() {
		return err
	}
	secrets := []string{c.Password, c.Auth, c.IdentityToken, c.RegistryToken}
	if user, pass, e := c.Pair(); e == nil && pass != "" {
		secrets = append(secrets, pass, base64.StdEncoding.EncodeToString([]byte(user+":"+pass)))
	}
	clean := err.Error()
	for _, secret := range secrets {
		if secret == "" {
			continue
		}
		quoted := strconv.Quote(secret) // as %q writes it
		for _, form := range []string{secret, quoted[1 : len(quoted)-1], url.QueryEscape(secret), url.PathEscape(secret)} {
			clean = strings.ReplaceAll(clean, form, hidden)
		}
	}
	if clean == err.Error() {
		return err
	}
	return &scrubbed{text: clean, err: err}
}

type scrubbed struct {
	text string
	err  error
}

func (s *scrubbed) Error() string { return s.text }
func (s *scrubbed) Unwrap() error { return s.err }

// String says which kinds of credentials are there, and no more.
func (c Credentials) String() string {
	var kinds []string
	for _, k := range []struct{ name, value string }{
		{"username", c.Username}, {"password", c.Password}, {"auth", c.Auth},
		{"identity-token", c.IdentityToken}, {"registry-token", c.RegistryToken},
	} {
		if k.value != "" {
			kinds = append(kinds, k.name)
		}
	}
	if len(kinds) == 0 {
		return "credentials(none)"
	}
	return "credentials(" + strings.Join(kinds, ",") + ": " + hidden + ")"
}

// GoString is [Credentials.String], for %#v.
func (c Credentials) GoString() string { return c.String() }

// Format is [Credentials.String] for every verb, so that none prints the fields.
func (c Credentials) Format(f fmt.State, _ rune) {
	// fmt.State swallows write errors by design: there is nobody to tell.
	_, _ = io.WriteString(f, c.String())
}

// MarshalJSON is [Credentials.String]: a structured log line prints no secret.
func (c Credentials) MarshalJSON() ([]byte, error) {
	return []byte(`"` + c.String() + `"`), nil
}
