// Package policy decides which of four kinds of image may run: encrypted or not,
// signed or not. It stands on top of containers-policy.json(5), which says whose
// signatures count and is checked first; this package only asks whether it had to be
// convinced by one.
package policy

import (
	"fmt"
	"strings"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// Rule says what holds for one kind of image. The zero value is [Allowed].
type Rule string

// The rules.
const (
	// Allowed images may run, unless another kind is mandatory.
	Allowed Rule = "allowed"
	// Refused images never run.
	Refused Rule = "refused"
	// Mandatory makes every image be of this kind, or of another that is mandatory too.
	Mandatory Rule = "mandatory"
)

// UnmarshalText reads a rule from a configuration; "" is [Allowed].
func (r *Rule) UnmarshalText(text []byte) error {
	switch rule := Rule(text); rule {
	case "", Allowed:
		*r = Allowed
	case Refused, Mandatory:
		*r = rule
	default:
		return fmt.Errorf("rule %.40q is none of %q, %q and %q", string(rule), Allowed, Refused, Mandatory)
	}
	return nil
}

// Config has a rule per kind of image. The zero value allows all four: what
// containers-policy.json accepts runs. To require that images are encrypted and
// signed, set EncryptedSigned to [Mandatory] and nothing else.
type Config struct {
	// EncryptedSigned is for images that are encrypted and signed.
	EncryptedSigned Rule `toml:"encrypted_signed"`
	// EncryptedUnsigned is for images that are encrypted and not signed.
	EncryptedUnsigned Rule `toml:"encrypted_unsigned"`
	// UnencryptedSigned is for images that are signed and not encrypted.
	UnencryptedSigned Rule `toml:"unencrypted_signed"`
	// UnencryptedUnsigned is for images that are neither.
	UnencryptedUnsigned Rule `toml:"unencrypted_unsigned"`
}

// entry is one kind of image with its rule; key is its name in the configuration.
type entry struct {
	key  string
	rule Rule
}

// kinds lists the rules; [Facts.kind] is the index.
func (c Config) kinds() []entry {
	return []entry{
		{"encrypted_signed", c.EncryptedSigned},
		{"encrypted_unsigned", c.EncryptedUnsigned},
		{"unencrypted_signed", c.UnencryptedSigned},
		{"unencrypted_unsigned", c.UnencryptedUnsigned},
	}
}

// Validate refuses a configuration under which no image could ever run, and rules
// that are none. The error is of kind InvalidArgument.
func (c Config) Validate() error {
	const op = "check image rules"
	open := false
	for _, k := range c.kinds() {
		var r Rule
		if err := r.UnmarshalText([]byte(k.rule)); err != nil {
			return errdefs.New(errdefs.InvalidArgument, op, fmt.Errorf("%s: %w", k.key, err))
		}
		open = open || r != Refused
	}
	if !open {
		return errdefs.Newf(errdefs.InvalidArgument, op, "they refuse every image")
	}
	return nil
}

// Facts is what is known of an image before any of its layers is fetched.
type Facts struct {
	// Layers counts the layers, Encrypted those that are encrypted.
	Layers, Encrypted int
	// Signed says that the signature policy accepted the image because of a
	// signature. See [RequiresSignature].
	Signed bool
}

// encrypted says whether the image counts as encrypted: it has layers and all of
// them are. One plain layer is enough for the registry, or whoever stands before it,
// to read a part of the image and to choose what it contains.
func (f Facts) encrypted() bool { return f.Layers > 0 && f.Encrypted >= f.Layers }

func (f Facts) kind() int {
	kind := 0
	if !f.encrypted() {
		kind += 2
	}
	if !f.Signed {
		kind++
	}
	return kind
}

// String describes the image.
func (f Facts) String() string {
	signed := map[bool]string{true: "a signature was verified", false: "no signature was verified"}[f.Signed]
	return fmt.Sprintf("%d of its %d layers are encrypted, %s", f.Encrypted, f.Layers, signed)
}

// Check says whether an image with these facts may run. The error is of kind
// PolicyRefused; it names the rule and the facts, and the caller names the image.
// A rule that is none refuses.
func (c Config) Check(f Facts) error {
	const op = "check image rules"
	kinds := c.kinds()
	is := kinds[f.kind()]
	refuse := func(format string, args ...any) error {
		return errdefs.Newf(errdefs.PolicyRefused, op, "%s: %s", fmt.Sprintf(format, args...), f)
	}
	var mandatory []string
	for _, k := range kinds {
		if k.rule == Mandatory {
			mandatory = append(mandatory, k.key+` = "mandatory"`)
		}
	}
	switch {
	case is.rule == Mandatory:
		return nil
	case is.rule != "" && is.rule != Allowed:
		return refuse("the rule %s = %q refuses the image", is.key, is.rule)
	case len(mandatory) > 0:
		return refuse("the rule %s refuses the image, which is %s", strings.Join(mandatory, " or "), is.key)
	}
	return nil
}
