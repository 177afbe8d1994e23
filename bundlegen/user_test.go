package bundlegen

import (
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/pkg/errdefs"
)

func ptr[T any](v T) *T { return &v }

func TestEffectiveUser(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		image string
		req   Request
		want  User
	}{
		{"nothing is uid 0 by rule", "", Request{}, User{}},
		{"image name", "web", Request{}, User{Spec: "web"}},
		{"image name and group", "web:staff", Request{}, User{Spec: "web:staff"}},
		{"image number", "1000:1001", Request{}, User{Spec: "1000:1001"}},
		{"request number over image, group of the image dropped", "web:staff", Request{RunAsUser: ptr(int64(7))}, User{Spec: "7"}},
		{"request zero is explicit", "web", Request{RunAsUser: ptr(int64(0))}, User{Spec: "0"}},
		{"request name over image", "web", Request{RunAsUsername: "db"}, User{Spec: "db"}},
		{"request name over request number", "web", Request{RunAsUsername: "db", RunAsUser: ptr(int64(7))}, User{Spec: "db"}},
		{"request name in image form", "web", Request{RunAsUsername: "db:staff"}, User{Spec: "db:staff"}},
		{"group with number", "web", Request{RunAsUser: ptr(int64(7)), RunAsGroup: ptr(int64(8))}, User{Spec: "7", Group: ptr(uint32(8))}},
		{"group with name", "", Request{RunAsUsername: "db", RunAsGroup: ptr(int64(0))}, User{Spec: "db", Group: ptr(uint32(0))}},
		{"supplemental groups and policy", "web", Request{SupplementalGroups: []int64{5, 6, 5}, GroupsPolicy: Strict},
			User{Spec: "web", SupplementalGroups: []uint32{5, 6, 5}, Policy: Strict}},
		{"largest ids", "", Request{RunAsUser: ptr(int64(maxID)), RunAsGroup: ptr(int64(maxID))},
			User{Spec: "2147483647", Group: ptr(uint32(maxID))}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			got, err := EffectiveUser(imgspec.ImageConfig{User: tc.image}, tc.req)
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(got).To(Equal(tc.want))
		})
	}
}

func TestEffectiveUserRefuses(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		image string
		req   Request
		kind  errdefs.Kind
	}{
		{"group without user", "web", Request{RunAsGroup: ptr(int64(5))}, errdefs.InvalidArgument},
		{"negative user", "", Request{RunAsUser: ptr(int64(-1))}, errdefs.UserUnresolvable},
		{"user that wraps to root", "", Request{RunAsUser: ptr(int64(1 << 32))}, errdefs.UserUnresolvable},
		{"image user that wraps to root", "4294967296", Request{}, errdefs.UserUnresolvable},
		{"image user beyond 64 bits", "18446744073709551616", Request{}, errdefs.UserUnresolvable},
		{"image group that wraps to root", "web:4294967296", Request{}, errdefs.UserUnresolvable},
		{"group that wraps to root", "", Request{RunAsUser: ptr(int64(1)), RunAsGroup: ptr(int64(1 << 32))}, errdefs.InvalidArgument},
		{"negative supplemental group", "", Request{SupplementalGroups: []int64{-1}}, errdefs.InvalidArgument},
		{"supplemental group that wraps to root", "", Request{SupplementalGroups: []int64{1 << 32}}, errdefs.InvalidArgument},
		{"unknown policy", "", Request{GroupsPolicy: "Loose"}, errdefs.InvalidArgument},
		{"too many groups", "", Request{SupplementalGroups: make([]int64, maxGroups+1)}, errdefs.TooLarge},
		{"two colons", "a:b:c", Request{}, errdefs.UserUnresolvable},
		{"newline", "web\nroot", Request{}, errdefs.UserUnresolvable},
		{"nul", "web\x00", Request{}, errdefs.UserUnresolvable},
		{"not utf-8", "w\xffb", Request{}, errdefs.UserUnresolvable},
		{"too long", strings.Repeat("a", maxUserSpec+1), Request{}, errdefs.UserUnresolvable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			got, err := EffectiveUser(imgspec.ImageConfig{User: tc.image}, tc.req)
			g.Expect(err).To(HaveOccurred())
			g.Expect(got).To(BeZero())
			g.Expect(errdefs.KindOf(err)).To(Equal(tc.kind), err.Error())
		})
	}
}

func TestNeedsLookup(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		user User
		want bool
	}{
		{User{}, false},
		{User{Spec: "0"}, false},
		{User{Spec: "1000:1001"}, false},
		{User{Spec: "root"}, true},
		{User{Spec: "web:1001"}, true},
		{User{Spec: "1000:staff"}, true},
		{User{Spec: ":staff"}, true},
		{User{Spec: "1000:staff", Group: ptr(uint32(5))}, false},
		{User{Spec: "web", Group: ptr(uint32(5))}, true},
		{User{Spec: "a:b:c"}, true},
	} {
		t.Run(tc.user.Spec, func(t *testing.T) {
			t.Parallel()
			NewWithT(t).Expect(tc.user.NeedsLookup()).To(Equal(tc.want))
		})
	}
}

func TestUserAnnotation(t *testing.T) {
	t.Parallel()
	for value, user := range map[string]User{
		`{"user":""}`:                                    {},
		`{"user":"web:staff"}`:                           {Spec: "web:staff"},
		`{"user":"7","group":0}`:                         {Spec: "7", Group: ptr(uint32(0))},
		`{"user":"7","supplementalGroups":[5,6]}`:        {Spec: "7", SupplementalGroups: []uint32{5, 6}},
		`{"user":"7","group":8,"groupsPolicy":"Strict"}`: {Spec: "7", Group: ptr(uint32(8)), Policy: Strict},
	} {
		t.Run(value, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			encoded, err := EncodeUser(user)
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(encoded).To(Equal(value))
			parsed, err := ParseUser(value)
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(parsed).To(Equal(user))
		})
	}
}

func TestUserAnnotationAtItsLimits(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	u := User{Spec: strings.Repeat("a", maxUserSpec), SupplementalGroups: make([]uint32, maxGroups)}
	for i := range u.SupplementalGroups {
		u.SupplementalGroups[i] = maxID
	}
	encoded, err := EncodeUser(u)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(ParseUser(encoded)).To(Equal(u))
}

func TestParseUserRefuses(t *testing.T) {
	t.Parallel()
	for name, value := range map[string]string{
		"empty":            "",
		"null":             "null",
		"not an object":    `"web"`,
		"unknown field":    `{"user":"web","sudo":true}`,
		"data behind":      `{"user":"web"} {"user":"root"}`,
		"garbage behind":   `{"user":"web"} x`,
		"unknown policy":   `{"user":"web","groupsPolicy":"Loose"}`,
		"negative group":   `{"user":"web","group":-1}`,
		"group too large":  `{"user":"web","group":4294967295}`,
		"groups too large": `{"user":"web","supplementalGroups":[4294967295]}`,
		"malformed user":   `{"user":"a:b:c"}`,
		"too long":         `{"user":"` + strings.Repeat(" ", maxUserJSON) + `"}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := ParseUser(value)
			NewWithT(t).Expect(err).To(HaveOccurred())
		})
	}
}

func FuzzParseUser(f *testing.F) {
	for _, seed := range []string{
		"", "null", "{}", `{"user":"web:staff","group":5,"supplementalGroups":[1,2],"groupsPolicy":"Strict"}`,
		`{"user":"4294967296"}`, `{"user":"-1"}`, `{"user":":"}`, `{"user":"\u0000"}`, `{"user":"a","user":"b"}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		u, err := ParseUser(value)
		if err != nil {
			return
		}
		encoded, err := EncodeUser(u)
		if err != nil {
			t.Fatalf("parsed %q but cannot encode it: %v", value, err)
		}
		again, err := ParseUser(encoded)
		if err != nil {
			t.Fatalf("encoded %q but cannot parse it: %v", encoded, err)
		}
		if again.Spec != u.Spec || again.Policy != u.Policy || len(again.SupplementalGroups) != len(u.SupplementalGroups) {
			t.Fatalf("%+v became %+v", u, again)
		}
	})
}
