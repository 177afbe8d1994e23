package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// entry is one file of a layer: a directory when its path ends in a slash, a symbolic link
// when Link is set.
type entry struct {
	Path, Link string
	Mode       int64
	UID, GID   int
	Data       string
}

// busybox is Debian's static one. The runtime looks for the program when a container is
// created, so there has to be one.
const busybox = "/bin/busybox"

// The root filesystems of the images.
const (
	usual   = "usual"   // a passwd and a group file as distributions have them
	none    = "none"    // without both
	blank   = "blank"   // with empty ones
	linked  = "linked"  // with absolute symbolic links to them
	broken  = "broken"  // with lines that are no entries
	folders = "folders" // with directories in their place
)

const usualPasswd = `root:x:0:0:root:/root:/bin/sh
# a comment:x:1:1
daemon:x:1:1::/usr/sbin:/usr/sbin/nologin
web:x:1000:1000:web:/home/web:/bin/sh
db:x:70:70::/var/lib/db:/bin/sh
nogrp:x:33:4444:no home:
short:x:1234:1235
first:x:2000:2000::/home/first:/bin/sh
second:x:2000:2001::/home/second:/bin/sh
twin:x:3001:3001::/home/a:/bin/sh
twin:x:3002:3002::/home/b:/bin/sh
4711:x:42:43::/home/digits:/bin/sh
svc.user-1:x:600:601::/srv:/bin/sh
last:x:2147483647:2147483647::/:/bin/sh
`

const usualGroup = `root:x:0:root
daemon:x:1:web
adm:x:4:web,db
alias:x:4:web
wheel:x:10:web
web:x:1000:
db:x:70:db
spaced:x:77: web
audio:x:63:db,web,root
empty:x:64:
4712:x:65:first
second:x:2001:second,first
noend:x:66:db`

// brokenPasswd has what moby's parser reads as user 0, or as a number that is not one of 32 bits.
const brokenPasswd = `
root:x:0:0:root:/root:/bin/sh
text:x:abc:abc::/:/bin/sh
wrap:x:4294967296:4294967296::/:/bin/sh
minus:x:-5:-5::/:/bin/sh
two:x
grp:x:500:oops::/home/grp:/bin/sh
big:x:4294967295:5::/:/bin/sh
good:x:501:501::/home/good:/bin/sh
`

const brokenGroup = `
root:x:0:
text:x:abc:good
wrap:x:4294967296:good
right:x:502:good
`

// layerOf returns the entries of a root filesystem.
func layerOf(kind string) []entry {
	list := []entry{
		{Path: "bin/", Mode: 0o755},
		{Path: "bin/busybox", Mode: 0o755, Data: busybox},
		{Path: "etc/", Mode: 0o755},
		{Path: "srv/", Mode: 0o755},
		{Path: "srv/there/", Mode: 0o750, UID: 7, GID: 8},
		{Path: "srv/file", Mode: 0o644, Data: "a file"},
		{Path: "var/", Mode: 0o755},
		{Path: "var/link", Link: "/srv/there"},
		{Path: "var/dangling", Link: "/srv/to-be"},
	}
	for _, applet := range []string{"sh", "echo", "true", "env"} {
		list = append(list, entry{Path: "bin/" + applet, Link: "busybox"})
	}
	accounts := func(dir, passwd, group string) []entry {
		return []entry{{Path: dir + "/passwd", Mode: 0o644, Data: passwd}, {Path: dir + "/group", Mode: 0o644, Data: group}}
	}
	switch kind {
	case usual:
		return append(list, accounts("etc", usualPasswd, usualGroup)...)
	case blank:
		return append(list, accounts("etc", "", "")...)
	case broken:
		return append(list, accounts("etc", brokenPasswd, brokenGroup)...)
	case linked:
		list = append(list, accounts("srv", usualPasswd, usualGroup)...)
		return append(list, entry{Path: "etc/passwd", Link: "/srv/passwd"}, entry{Path: "etc/group", Link: "/srv/group"})
	case folders:
		return append(list, entry{Path: "etc/passwd/", Mode: 0o755}, entry{Path: "etc/group/", Mode: 0o755})
	}
	return list
}

// layer is a root filesystem as a layer of an image, not compressed.
func layer(kind string, docker bool) (v1.Layer, error) {
	program, err := os.ReadFile(busybox)
	if err != nil {
		return nil, fmt.Errorf("read busybox (apt package busybox-static): %w", err)
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range layerOf(kind) {
		if e.Data == busybox {
			e.Data = string(program)
		}
		h := &tar.Header{Name: e.Path, Mode: e.Mode, Uid: e.UID, Gid: e.GID, Size: int64(len(e.Data)), Typeflag: tar.TypeReg}
		switch {
		case e.Link != "":
			h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, e.Link, 0o777
		case strings.HasSuffix(e.Path, "/"):
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("archive %s: %w", e.Path, err)
		}
		if _, err := w.Write([]byte(e.Data)); err != nil {
			return nil, fmt.Errorf("archive %s: %w", e.Path, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("archive: %w", err)
	}
	if docker {
		return static.NewLayer(buf.Bytes(), types.DockerUncompressedLayer), nil
	}
	return static.NewLayer(buf.Bytes(), types.OCIUncompressedLayer), nil
}

// unpack makes a root filesystem in dir, as the unpacked layer is; programs are empty.
func unpack(dir, kind string) error {
	for _, e := range layerOf(kind) {
		at := filepath.Join(dir, e.Path)
		var err error
		switch {
		case e.Link != "":
			err = os.Symlink(e.Link, at)
		case strings.HasSuffix(e.Path, "/"):
			err = os.Mkdir(at, 0o700)
		default:
			err = os.WriteFile(at, []byte(e.Data), 0o600)
		}
		if err == nil {
			err = os.Lchown(at, e.UID, e.GID)
		}
		if err == nil && e.Link == "" {
			err = os.Chmod(at, os.FileMode(e.Mode))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// architecture is that of the images: this machine's.
const architecture = runtime.GOARCH
