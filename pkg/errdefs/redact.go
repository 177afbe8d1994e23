package errdefs

import (
	"net/url"
	"regexp"
	"strings"
)

const redacted = "REDACTED"

var (
	// urlPattern finds absolute URLs inside a message.
	urlPattern = regexp.MustCompile(`[a-zA-Z][a-zA-Z0-9+.-]*://[^\s"'<>]+`)
	// authPattern finds an HTTP authorization value.
	authPattern = regexp.MustCompile(`(?i)\b(basic|bearer)\s+[A-Za-z0-9._~+/=-]{6,}`)
	// userPattern finds user:password@host as people write it in front of an image
	// name. What is before the @ of a pinned reference looks the same.
	userPattern = regexp.MustCompile(`[^\s"'/@<>]+:[^\s"'/@<>]+@[^\s"'/@<>]+`)
)

// safeQuery lists the query parameters of the distribution and token protocols
// that carry no secret. The value of any other parameter is removed: an allow
// list, because a list of secrets would always miss the next one.
func safeQuery(name string) bool {
	switch name {
	case "scope", "service", "ns", "n", "last", "digest", "mount", "from":
		return true
	}
	return false
}

// Redact removes credentials from text: the user part and the fragment of URLs, the
// values of URL query parameters that are not known to be harmless, and
// authorization values.
func Redact(text string) string {
	if strings.Contains(text, "://") {
		text = urlPattern.ReplaceAllStringFunc(text, redactURL)
	}
	if strings.Contains(text, "@") {
		text = userPattern.ReplaceAllStringFunc(text, redactUser)
	}
	return authPattern.ReplaceAllString(text, "$1 "+redacted)
}

func redactUser(raw string) string {
	at := strings.LastIndex(raw, "@")
	if strings.HasPrefix(raw[at+1:], "sha256:") || strings.HasPrefix(raw[at+1:], "sha512:") {
		return raw // tag@digest
	}
	return redacted + raw[at:]
}

func redactURL(raw string) string {
	trimmed := strings.TrimRight(raw, ".,;:)]}")
	tail := raw[len(trimmed):]
	u, err := url.Parse(trimmed)
	if err != nil {
		// Not a URL that can be taken apart: keep nothing behind the scheme.
		scheme, _, _ := strings.Cut(trimmed, "://")
		return scheme + "://" + redacted + tail
	}
	if u.User == nil && u.RawQuery == "" && u.Fragment == "" {
		return raw
	}
	if u.Fragment != "" { // where OAuth redirects put tokens
		u.Fragment, u.RawFragment = redacted, ""
	}
	if u.User != nil {
		u.User = url.User(redacted)
	}
	if u.RawQuery != "" {
		q := u.Query()
		for name := range q {
			if !safeQuery(name) {
				q.Set(name, redacted)
			}
		}
		u.RawQuery = q.Encode()
	}
	return u.String() + tail
}
