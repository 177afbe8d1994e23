// Package bundlegen computes what a container runs as. From an image config and
// a CRI request it derives the effective process (OCI image spec,
// conversion.md, and the rules of stock CRI-O 1.34) and the changes that make
// CRI-O accept a container whose layers the host never sees. Where the layers
// are, it completes the runtime spec against the unpacked root filesystem.
//
// Without CRI-O it makes the whole runtime spec and writes it as a bundle.
//
// The package holds no state and knows neither the CRI types nor any network.
// [Resolve] and [Complete] touch files, confined to the rootfs they are given, and
// [WriteBundle] its directory; [Spec] looks at which control groups and processors
// the kernel has.
package bundlegen

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/pkg/errdefs"
)

const (
	// maxID is the largest user or group ID that Kubernetes and CRI-O accept. A
	// larger one would wrap around where an ID is 32 bits wide, and 2^32 is root.
	maxID = 1<<31 - 1
	// maxGroups is the kernel's NGROUPS_MAX. A longer list could never be set, and
	// only makes the node and the runtime work.
	maxGroups = 65536
	// maxUserSpec bounds the user string, in bytes: it comes from an image that may be
	// hostile and travels in annotations and error texts. Login names have 32.
	maxUserSpec = 512
	// maxUserJSON bounds the annotation value, in bytes: maxGroups ten-digit IDs and
	// their commas fit; an annotation grown to fill the shim's memory does not.
	maxUserJSON = 1 << 20
)

// GroupsPolicy says whether the groups that the image's group file gives the user
// are added to the request's (CRI SupplementalGroupsPolicy). The zero value is [Merge].
type GroupsPolicy string

// The policies of CRI.
const (
	// Merge adds the groups of the image's group file.
	Merge GroupsPolicy = ""
	// Strict takes the request's groups alone.
	Strict GroupsPolicy = "Strict"
)

// Request is the part of a CRI container config that decides what runs. Its zero
// value asks for what the image says. An empty list is the same as none: the CRI
// wire format cannot tell them apart.
type Request struct {
	// Command replaces the image's entrypoint, and with it the image's command.
	Command []string
	// Args replace the image's command.
	Args []string
	// Env holds "NAME=value" in the order of the request. $(NAME) is expanded by
	// the kubelet, never here.
	Env []string
	// WorkingDir replaces the image's unless empty.
	WorkingDir string
	// StopSignal replaces the image's unless empty: a name such as "SIGTERM".
	StopSignal string
	// RunAsUser replaces the image's user, group included.
	RunAsUser *int64
	// RunAsUsername replaces the image's user, and wins over RunAsUser. It has the
	// form of an image user.
	RunAsUsername string
	// RunAsGroup replaces the primary group. Without a user in the request it is an error.
	RunAsGroup *int64
	// SupplementalGroups are added to the process whatever the policy.
	SupplementalGroups []int64
	// GroupsPolicy decides about the groups in the image.
	GroupsPolicy GroupsPolicy
}

// User is whom to run as before names are resolved. Its JSON, see [EncodeUser], is
// the value of the annotation husk.dev/user.
type User struct {
	// Spec has the form of an OCI image user: "", "user", "uid", "user:group",
	// "uid:gid", "uid:group" or "user:gid". Empty is uid 0, as in CRI-O.
	Spec string `json:"user"`
	// Group replaces the primary group that Spec and the passwd file give; nil leaves it.
	Group *uint32 `json:"group,omitempty"`
	// SupplementalGroups are the groups of the request.
	SupplementalGroups []uint32 `json:"supplementalGroups,omitempty"`
	// Policy decides about the groups in the image.
	Policy GroupsPolicy `json:"groupsPolicy,omitempty"`
}

// EffectiveUser decides whom the container runs as: the request over the image, as
// CRI-O does (server/container_create.go, setupContainerUser). Its errors are
// InvalidArgument for a wrong request and UserUnresolvable for a malformed user string.
func EffectiveUser(image imgspec.ImageConfig, req Request) (User, error) {
	u := User{Spec: image.User, Policy: req.GroupsPolicy}
	switch {
	case req.RunAsUsername != "":
		u.Spec = req.RunAsUsername
	case req.RunAsUser != nil:
		u.Spec = strconv.FormatInt(*req.RunAsUser, 10)
	case req.RunAsGroup != nil:
		return User{}, errdefs.Newf(errdefs.InvalidArgument, "decide container user",
			"run_as_group is set without run_as_user or run_as_username")
	}
	if req.RunAsGroup != nil {
		gid, err := requestID("run_as_group", *req.RunAsGroup)
		if err != nil {
			return User{}, err
		}
		u.Group = &gid
	}
	for _, g := range req.SupplementalGroups {
		gid, err := requestID("supplemental_groups", g)
		if err != nil {
			return User{}, err
		}
		u.SupplementalGroups = append(u.SupplementalGroups, gid)
	}
	if err := u.validate(); err != nil {
		return User{}, err
	}
	return u, nil
}

func requestID(field string, id int64) (uint32, error) {
	if id < 0 || id > maxID {
		return 0, errdefs.Newf(errdefs.InvalidArgument, "decide container user", "%s %d is not in 0-%d", field, id, maxID)
	}
	return uint32(id), nil
}

// NeedsLookup reports whether u names a user or a group that only the image's own
// files can resolve. A primary group by name does not count when Group replaces it.
func (u User) NeedsLookup() bool {
	s, err := parseSpec(u.Spec)
	if err != nil {
		return true
	}
	return s.userName() != "" || (s.groupName() != "" && u.Group == nil)
}

// EncodeUser returns the annotation value of u, or an error for a u that [ParseUser]
// would refuse.
func EncodeUser(u User) (string, error) {
	if err := u.validate(); err != nil {
		return "", err
	}
	b, err := json.Marshal(u)
	if err != nil {
		return "", errdefs.New(errdefs.Internal, "encode container user", err)
	}
	return string(b), nil
}

// ParseUser reads what [EncodeUser] wrote. A field it does not know is an error: a
// newer peer may mean something by it that decides whom the container runs as. An
// empty value is an error too, since only an explicit user may be root.
func ParseUser(annotation string) (User, error) {
	const op = "parse container user annotation"
	if len(annotation) > maxUserJSON {
		return User{}, errdefs.Newf(errdefs.TooLarge, op, "%d bytes, at most %d", len(annotation), maxUserJSON)
	}
	var u *User
	dec := json.NewDecoder(bytes.NewReader([]byte(annotation)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&u); err != nil {
		return User{}, errdefs.New(errdefs.InvalidArgument, op, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return User{}, errdefs.Newf(errdefs.InvalidArgument, op, "data after the value")
	}
	if u == nil {
		return User{}, errdefs.Newf(errdefs.InvalidArgument, op, "null")
	}
	if err := u.validate(); err != nil {
		return User{}, err
	}
	return *u, nil
}

func (u User) validate() error {
	const op = "check container user"
	if _, err := parseSpec(u.Spec); err != nil {
		return err
	}
	if u.Policy != Merge && u.Policy != Strict {
		return errdefs.Newf(errdefs.InvalidArgument, op, "unknown supplemental groups policy %q", u.Policy)
	}
	if len(u.SupplementalGroups) > maxGroups {
		return errdefs.Newf(errdefs.TooLarge, op, "%d supplemental groups, at most %d", len(u.SupplementalGroups), maxGroups)
	}
	groups := u.SupplementalGroups
	if u.Group != nil {
		groups = append([]uint32{*u.Group}, groups...)
	}
	for _, g := range groups {
		if g > maxID {
			return errdefs.Newf(errdefs.InvalidArgument, op, "group %d is over %d", g, maxID)
		}
	}
	return nil
}

// userSpec is a parsed user string: each half is absent, a number or a name.
type userSpec struct{ user, group part }

type part struct {
	text    string
	id      uint32
	numeric bool
}

func (s userSpec) userName() string  { return s.user.name() }
func (s userSpec) groupName() string { return s.group.name() }

func (p part) name() string {
	if p.numeric {
		return ""
	}
	return p.text
}

// parseSpec takes a user string apart. A number is never looked up as a name (OCI
// image spec, config.md, "User").
func parseSpec(spec string) (userSpec, error) {
	const op = "parse container user"
	if len(spec) > maxUserSpec {
		return userSpec{}, errdefs.Newf(errdefs.UserUnresolvable, op, "%d bytes, at most %d", len(spec), maxUserSpec)
	}
	if !utf8.ValidString(spec) || strings.ContainsFunc(spec, unicode.IsControl) {
		return userSpec{}, errdefs.Newf(errdefs.UserUnresolvable, op, "%q is not printable text", spec)
	}
	user, group, _ := strings.Cut(spec, ":")
	if strings.Contains(group, ":") {
		return userSpec{}, errdefs.Newf(errdefs.UserUnresolvable, op, "%q has more than one colon", spec)
	}
	u, err := parsePart(user)
	if err != nil {
		return userSpec{}, errdefs.New(errdefs.UserUnresolvable, op, fmt.Errorf("%q: %w", spec, err))
	}
	g, err := parsePart(group)
	if err != nil {
		return userSpec{}, errdefs.New(errdefs.UserUnresolvable, op, fmt.Errorf("%q: %w", spec, err))
	}
	return userSpec{user: u, group: g}, nil
}

func parsePart(text string) (part, error) {
	id, err := strconv.ParseInt(text, 10, 64)
	if errors.Is(err, strconv.ErrRange) || (err == nil && (id < 0 || id > maxID)) {
		return part{}, fmt.Errorf("id %s is not in 0-%d", text, maxID)
	}
	if err != nil {
		return part{text: text}, nil //nolint:nilerr // what is no number is a name
	}
	return part{text: text, id: uint32(id), numeric: true}, nil
}
