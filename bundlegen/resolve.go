package bundlegen

import (
	"errors"
	"fmt"
	"slices"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// Resolve turns u into numbers with the passwd and group file of the image unpacked at
// rootfs, an absolute path. The rules are the OCI image spec's and CRI-O's: a number
// needs no entry; without one its group is 0 and its home "/"; a name without an entry
// is UserUnresolvable, never root. A missing file is an empty one. A file that cannot be
// read, is over 4 MiB or is not a regular file is UserUnresolvable or TooLarge.
func Resolve(rootfs string, u User) (id Identity, err error) {
	root, err := openRootDir(rootfs)
	if err != nil {
		return Identity{}, err
	}
	defer func() { err = errors.Join(err, root.close()) }()
	return root.resolveUser(u)
}

func (d rootDir) resolveUser(u User) (Identity, error) {
	if err := u.validate(); err != nil {
		return Identity{}, err
	}
	op := fmt.Sprintf("resolve user %q in image", u.Spec)
	passwd, err := d.readFile("/etc/passwd")
	if err != nil {
		return Identity{}, unresolvable(op, err)
	}
	group, err := d.readFile("/etc/group")
	if err != nil {
		return Identity{}, unresolvable(op, err)
	}
	id, err := lookUp(u, passwd, group)
	if err != nil {
		return Identity{}, unresolvable(op, err)
	}
	return id, nil
}

// unresolvable keeps the kind of an error that has one.
func unresolvable(op string, err error) error {
	kind := errdefs.KindOf(err)
	if kind == errdefs.Internal {
		kind = errdefs.UserUnresolvable
	}
	return errdefs.New(kind, op, err)
}

// lookUp resolves u against the contents of a passwd and a group file.
func lookUp(u User, passwd, group []byte) (Identity, error) {
	spec, err := parseSpec(u.Spec)
	if err != nil {
		return Identity{}, err
	}
	entry, found := first(passwdEntries(passwd), func(e passwdEntry) bool {
		if name := spec.userName(); name != "" {
			return e.name == name
		}
		return e.uid == spec.user.id // 0 when the spec has no user
	})
	if !found && spec.userName() != "" {
		return Identity{}, fmt.Errorf("no user %q in /etc/passwd", spec.userName())
	}
	id := Identity{UID: spec.user.id, Home: "/"}
	if found {
		id.UID, id.GID = entry.uid, entry.gid
		if entry.home != "" {
			id.Home = entry.home
		}
	}
	if id.GID, err = primaryGroup(u, spec, id.GID, group); err != nil {
		return Identity{}, err
	}
	id.Groups = []uint32{id.GID}
	// An explicit group in the user string takes the place of the user's memberships.
	if u.Policy == Merge && found && spec.group.text == "" {
		id.Groups = append(id.Groups, memberships(group, entry.name)...)
	}
	id.Groups = dedup(append(id.Groups, u.SupplementalGroups...))
	if len(id.Groups) > maxGroups {
		return Identity{}, fmt.Errorf("user is in %d groups, at most %d", len(id.Groups), maxGroups)
	}
	return id, nil
}

// primaryGroup is, by precedence: the request's, the one in the user string, the passwd
// entry's. A group name in the user string that the request replaces is not looked up.
func primaryGroup(u User, spec userSpec, fromPasswd uint32, group []byte) (uint32, error) {
	switch {
	case u.Group != nil:
		return *u.Group, nil
	case spec.group.numeric:
		return spec.group.id, nil
	case spec.groupName() == "":
		return fromPasswd, nil
	}
	entry, ok := first(groupEntries(group), func(g groupEntry) bool { return g.name == spec.groupName() })
	if !ok {
		return 0, fmt.Errorf("no group %q in /etc/group", spec.groupName())
	}
	return entry.gid, nil
}

func memberships(group []byte, name string) []uint32 {
	var gids []uint32
	for g := range groupEntries(group) {
		if g.hasMember(name) {
			gids = append(gids, g.gid)
		}
	}
	return gids
}

// dedup keeps the first of each group.
func dedup(gids []uint32) []uint32 {
	seen := make(map[uint32]struct{}, len(gids))
	return slices.DeleteFunc(gids, func(g uint32) bool {
		_, again := seen[g]
		seen[g] = struct{}{}
		return again
	})
}
