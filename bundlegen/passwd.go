package bundlegen

import (
	"bytes"
	"iter"
	"strconv"
)

// The parsers below are stricter than github.com/moby/sys/user, which reads a broken
// number as 0 and does not check the range of an entry: "web:x:oops:" and
// "web:x:4294967296:" would both run as root. As in glibc, a line that is not an entry
// is skipped, so the name it pretends to define stays unknown.

// passwdEntry is the part of a passwd(5) line that matters here.
type passwdEntry struct {
	name     string
	uid, gid uint32
	home     string
}

// groupEntry is the part of a group(5) line that matters here.
type groupEntry struct {
	name    string
	gid     uint32
	members []byte // names, separated by commas
}

// The numbers of colon-separated fields that an entry must have. passwd has seven and
// group four; the ones behind the group ID are often left out in small images.
const (
	minPasswdFields = 4
	minGroupFields  = 3
	maxFields       = 8
)

func passwdEntries(file []byte) iter.Seq[passwdEntry] {
	return func(yield func(passwdEntry) bool) {
		for fields := range lines(file, minPasswdFields) {
			uid, uidOK := parseID(fields[2])
			gid, gidOK := parseID(fields[3])
			if !uidOK || !gidOK {
				continue
			}
			entry := passwdEntry{name: string(fields[0]), uid: uid, gid: gid}
			if len(fields) > 5 {
				entry.home = string(fields[5])
			}
			if !yield(entry) {
				return
			}
		}
	}
}

func groupEntries(file []byte) iter.Seq[groupEntry] {
	return func(yield func(groupEntry) bool) {
		for fields := range lines(file, minGroupFields) {
			gid, ok := parseID(fields[2])
			if !ok {
				continue
			}
			entry := groupEntry{name: string(fields[0]), gid: gid}
			if len(fields) > 3 {
				entry.members = fields[3]
			}
			if !yield(entry) {
				return
			}
		}
	}
}

// lines yields the fields of every line that has a name and at least minFields fields.
// Whatever is behind the last field that a format has stays in one piece, so that a file
// of colons costs no memory.
func lines(file []byte, minFields int) iter.Seq[[][]byte] {
	return func(yield func([][]byte) bool) {
		for line := range bytes.Lines(file) {
			fields := bytes.SplitN(bytes.TrimSpace(line), []byte(":"), maxFields)
			if len(fields) < minFields || len(fields[0]) == 0 || fields[0][0] == '#' {
				continue
			}
			if !yield(fields) {
				return
			}
		}
	}
}

func parseID(field []byte) (uint32, bool) {
	id, err := strconv.ParseUint(string(field), 10, 32)
	return uint32(id), err == nil && id <= maxID
}

func (g groupEntry) hasMember(name string) bool {
	for member := range bytes.SplitSeq(g.members, []byte(",")) {
		if string(member) == name {
			return true
		}
	}
	return false
}

// first returns the first entry for which match holds: with duplicate entries the
// first one wins, as in every other reader of these files.
func first[T any](entries iter.Seq[T], match func(T) bool) (T, bool) {
	for entry := range entries {
		if match(entry) {
			return entry, true
		}
	}
	var none T
	return none, false
}
