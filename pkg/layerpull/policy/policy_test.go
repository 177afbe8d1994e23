package policy

import (
	"testing"

	"github.com/BurntSushi/toml"
	. "github.com/onsi/gomega"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// The four kinds of image.
var (
	encryptedSigned     = Facts{Layers: 3, Encrypted: 3, Signed: true}
	encryptedUnsigned   = Facts{Layers: 3, Encrypted: 3}
	unencryptedSigned   = Facts{Layers: 3, Signed: true}
	unencryptedUnsigned = Facts{Layers: 3}
)

func TestCheck(t *testing.T) {
	t.Parallel()
	all := []Facts{encryptedSigned, encryptedUnsigned, unencryptedSigned, unencryptedUnsigned}
	for what, tt := range map[string]struct {
		config  Config
		allowed [4]bool
		// rule is what each refusal names.
		rule string
	}{
		"nothing configured": {Config{}, [4]bool{true, true, true, true}, ""},
		"all allowed":        {Config{Allowed, Allowed, Allowed, Allowed}, [4]bool{true, true, true, true}, ""},
		"both required":      {Config{EncryptedSigned: Mandatory}, [4]bool{true, false, false, false}, `encrypted_signed = "mandatory"`},
		"encryption required": {Config{EncryptedSigned: Mandatory, EncryptedUnsigned: Mandatory}, [4]bool{true, true, false, false},
			`encrypted_signed = "mandatory" or encrypted_unsigned = "mandatory"`},
		"signatures required": {Config{EncryptedUnsigned: Refused, UnencryptedUnsigned: Refused}, [4]bool{true, false, true, false}, `_unsigned = "refused"`},
		"one refused":         {Config{UnencryptedUnsigned: Refused}, [4]bool{true, true, true, false}, `unencrypted_unsigned = "refused"`},
		"even the best":       {Config{EncryptedSigned: Refused}, [4]bool{false, true, true, true}, `encrypted_signed = "refused"`},
		"plain ones only":     {Config{UnencryptedUnsigned: Mandatory}, [4]bool{false, false, false, true}, `unencrypted_unsigned = "mandatory"`},
		"no rule":             {Config{UnencryptedUnsigned: "yes"}, [4]bool{true, true, true, false}, `unencrypted_unsigned = "yes"`},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			for i, facts := range all {
				g := NewWithT(t)
				err := tt.config.Check(facts)
				if tt.allowed[i] {
					g.Expect(err).NotTo(HaveOccurred())
					continue
				}
				g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.PolicyRefused), "%v: %v", facts, err)
				g.Expect(err.Error()).To(And(ContainSubstring(tt.rule), ContainSubstring(facts.String())))
			}
		})
	}
}

// TestPartlyEncrypted: such an image is not encrypted, and neither is one of nothing.
func TestPartlyEncrypted(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	both := Config{EncryptedSigned: Mandatory}
	for _, facts := range []Facts{{Layers: 3, Encrypted: 2, Signed: true}, {Signed: true}} {
		err := both.Check(facts)
		g.Expect(errdefs.KindOf(err)).To(Equal(errdefs.PolicyRefused))
		g.Expect(err.Error()).To(HaveSuffix("which is unencrypted_signed: " + facts.String()))
		g.Expect(Config{UnencryptedSigned: Refused}.Check(facts)).NotTo(Succeed())
		g.Expect(Config{EncryptedSigned: Refused}.Check(facts)).To(Succeed())
	}
	g.Expect(Facts{Layers: 3, Encrypted: 2, Signed: true}.String()).To(Equal("2 of its 3 layers are encrypted, a signature was verified"))
}

func TestConfiguration(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	var c Config
	_, err := toml.Decode("encrypted_signed = \"mandatory\"\nunencrypted_unsigned = \"refused\"\nencrypted_unsigned = \"\"", &c)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(c).To(Equal(Config{EncryptedSigned: Mandatory, EncryptedUnsigned: Allowed, UnencryptedUnsigned: Refused}))
	g.Expect(c.Validate()).To(Succeed())
	g.Expect(Config{}.Validate()).To(Succeed())

	_, err = toml.Decode(`encrypted_signed = "required"`, &c)
	g.Expect(err).To(MatchError(ContainSubstring(`rule "required" is none of`)))
	for _, bad := range []Config{{UnencryptedSigned: "x"}, {Refused, Refused, Refused, Refused}} {
		g.Expect(errdefs.KindOf(bad.Validate())).To(Equal(errdefs.InvalidArgument))
	}
}

func FuzzConfiguration(f *testing.F) {
	f.Add("encrypted_signed = \"mandatory\"", 3, 3, true)
	f.Add("unencrypted_unsigned = \"refused\"\nencrypted_unsigned = \"x\"", 3, 2, false)
	f.Add("[encrypted_signed]", 0, 0, false)
	f.Fuzz(func(t *testing.T, text string, layers, encrypted int, signed bool) {
		var c Config
		if _, err := toml.Decode(text, &c); err != nil {
			return
		}
		for _, k := range c.kinds() {
			if k.rule != "" && k.rule != Allowed && k.rule != Refused && k.rule != Mandatory {
				t.Fatalf("%s is %q", k.key, k.rule)
			}
		}
		facts := Facts{layers, encrypted, signed}
		rule := c.kinds()[facts.kind()].rule
		err := c.Check(facts)
		switch {
		case rule == Refused && err == nil, rule == Mandatory && err != nil, rule == Allowed && err == nil && c.mandatory():
			t.Fatalf("rule %q: %v", rule, err)
		}
	})
}

func (c Config) mandatory() bool {
	for _, k := range c.kinds() {
		if k.rule == Mandatory {
			return true
		}
	}
	return false
}
