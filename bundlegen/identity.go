package bundlegen

import (
	"slices"
	"strings"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
)

// Identity is whom a process runs as, in numbers of the container's user namespace.
type Identity struct {
	// UID and GID are the user and the primary group.
	UID, GID uint32
	// Groups are the additional groups as CRI-O orders them: the primary group, those
	// of the image's group file, those of the request; without duplicates.
	Groups []uint32
	// Home is the user's home directory in the passwd file, "/" when it has none.
	Home string
}

// Apply puts the identity into p, the container's process or one that is executed in
// it. User, group and additional groups are replaced, not merged: what CRI-O wrote
// there stems from a placeholder, and its group may be root's. The umask stays. HOME
// is set unless the environment sets it to something, as runc does.
func (id Identity) Apply(p *rspec.Process) {
	p.User.UID = id.UID
	p.User.GID = id.GID
	p.User.AdditionalGids = slices.Clone(id.Groups)
	p.User.Username = ""
	home := "HOME=" + id.Home
	for i, entry := range p.Env {
		value, ok := strings.CutPrefix(entry, "HOME=")
		if !ok {
			continue
		}
		if value == "" {
			p.Env[i] = home
		}
		return
	}
	p.Env = append(p.Env, home)
}
