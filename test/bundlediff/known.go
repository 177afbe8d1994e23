package main

import (
	"slices"
	"strings"
)

// Patterns of values.
const (
	anything = ".*"
	userdata = `"/.*/userdata/.*"`
)

// listed are the differences that are meant to be, with the reason. It is exact: judge
// fails for a line without a difference as for a difference without a line.
func listed() []row { return slices.Concat(ofNode(), ofHusk(), ofUsers()) }

// prefixed are the fields of a map or list with these keys.
func prefixed(list string, keys ...string) []string {
	fields := make([]string, 0, len(keys))
	for _, key := range keys {
		fields = append(fields, list+"["+key+"]")
	}
	return fields
}

// sets is the combinations in which image or request has a variable.
func sets(name string) func(combination) bool {
	return func(c combination) bool {
		for _, e := range c.config().GetEnvs() {
			if e.GetKey() == name {
				return made == c.outcome()
			}
		}
		return made == c.outcome() && slices.ContainsFunc(c.Image.Config.Env, func(e string) bool { return strings.HasPrefix(e, name+"=") })
	}
}

// outcome is what both sides are meant to do.
func (c combination) outcome() string {
	if c.Stock != "" || c.Husk != "" {
		return refused
	}
	return made
}

func or(a, b func(combination) bool) func(combination) bool {
	return func(c combination) bool { return a(c) || b(c) }
}

func not(a func(combination) bool) func(combination) bool {
	return func(c combination) bool { return made == c.outcome() && !a(c) }
}

// ofNode are what CRI-O knows of its pod and container, and what it does for them.
func ofNode() []row {
	return []row{
		{
			Fields: prefixed("annotations", "io.container.manager", "io.kubernetes.cri-o.Annotations", "io.kubernetes.cri-o.ContainerID",
				"io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.Created", "io.kubernetes.cri-o.IP.0", "io.kubernetes.cri-o.Image",
				"io.kubernetes.cri-o.ImageRef", "io.kubernetes.cri-o.Labels", "io.kubernetes.cri-o.LogPath", "io.kubernetes.cri-o.Metadata",
				"io.kubernetes.cri-o.MountPoint", "io.kubernetes.cri-o.Name", "io.kubernetes.cri-o.PlatformRuntimePath",
				"io.kubernetes.cri-o.ResolvPath", "io.kubernetes.cri-o.SandboxID", "io.kubernetes.cri-o.SandboxName",
				"io.kubernetes.cri-o.SeccompProfilePath", "io.kubernetes.cri-o.Stdin", "io.kubernetes.cri-o.StdinOnce",
				"io.kubernetes.cri-o.TTY", "io.kubernetes.cri-o.Volumes"),
			Stock: anything, Husk: absent,
			Why: "CRI-O's own state of the container and its pod; whoever writes a bundle adds what its runtime reads (SpecOptions.Annotations)",
		},
		{
			Fields: prefixed("linux.namespaces", "ipc", "network", "uts"), Stock: absent, Husk: "{}",
			Why: "namespaces of its own by default; a pod's are given in SpecOptions.Namespaces",
		},
		{
			Fields: []string{"linux.namespaces[ipc].path", "linux.namespaces[network].path", "linux.namespaces[uts].path"}, Stock: `"/.*ns/.*"`, Husk: absent,
			Why: "the pod's namespaces, which the same option gives",
		},
		{Fields: []string{"root.path"}, Stock: `"/.*/merged"`, Husk: `"/.*/bundlediff-[0-9]+"`, Why: "where the image is unpacked"},
		{
			Fields: []string{"rootfs[/etc/mtab]"}, Stock: "link to /proc/mounts", Husk: "nothing",
			Why: "CRI-O links it in every image; programs that need it are in images that have it",
		},
		{
			Fields: []string{"linux.resources.cpu.shares", "linux.resources.cpu.quota", "linux.resources.cpu.period"}, In: in("request/oom score"),
			Stock: "0", Husk: absent, Why: "limits are the caller's, and CRI-O writes zeros, no limits, for a request without numbers",
		},
		{
			Fields: []string{"linux.seccomp"}, In: in("request/default seccomp profile"), Stock: `.*SCMP_ACT_ERRNO.*`, Husk: `.*SCMP_ACT_ERRNO.*`,
			Why: "containerd's default profile instead of containers/common's: both allow by list",
		},
	}
}

// ofHusk are what is meant for Husk's runtimes, and what is told otherwise with the same effect.
func ofHusk() []row {
	terminal := in("request/terminal")
	return []row{
		{
			Fields: prefixed("annotations", "husk.dev/image-id", "husk.dev/image-ref", "husk.dev/image-volumes", "husk.dev/record-id", "husk.dev/user", "husk.dev/user-image"),
			Stock:  absent, Husk: `".+"`, Why: "the image and the user for the runtime that pulls the layers",
		},
		{
			Fields: prefixed("annotations", "io.kubernetes.cri-o.ImageName"), Stock: `"[^@]+"`, Husk: `"[^@]+@sha256:[0-9a-f]{64}"`,
			Why: "the runtime pulls by this one, so it is pinned",
		},
		{
			Fields: []string{"replaced process.env[PATH]"}, In: sets("PATH"), Stock: `\["/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"\]`, Husk: absent,
			Why: "CRI-O's generator does not find its own default again and adds a second one; runc lets the last one win",
		},
		{
			Fields: []string{"replaced process.env[TERM]"}, In: or(sets("TERM"), terminal), Stock: `\["xterm"\]`, Husk: absent,
			Why: "as for PATH",
		},
		{
			Fields: []string{"process.env[HOME]"}, In: not(sets("HOME")), Stock: absent, Husk: `"/.*"`,
			Why: "runc sets it from the passwd file when it starts the process; other runtimes do not, so it is in the spec. The values compare as \"HOME of the process\"",
		},
		{
			Fields: []string{"process.env[HOME]"}, In: in("env/an empty HOME of the image", "env/an empty HOME of the request"), Stock: `""`, Husk: `"/root"`,
			Why: "runc takes an empty one for none, see above",
		},
		{
			Fields: []string{"rootfs[/dev]", "rootfs[/dev/shm]", "rootfs[/dev/shm/x]"}, In: in("volumes/under a mount"),
			Stock: "drwxr-xr-x 0:0", Husk: "nothing", Why: "nobody would see a directory under a mount",
		},
		{
			Fields: []string{"rootfs[/data]", "rootfs[/data/below]"}, In: in("volumes/under a mount of the request"),
			Stock: "drwxr-xr-x 1000:1000", Husk: "nothing", Why: "nobody would see a directory under a mount",
		},
	}
}

// ofUsers are about passwd and group files.
func ofUsers() []row {
	mount := func(file string) []string {
		return []string{"mounts[" + file + "].type", "mounts[" + file + "].source", "mounts[" + file + "].options"}
	}
	const entry = "CRI-O mounts a copy of the file with an entry for an ID that has none; the host has no such file, and where the layers are the image's stays what was signed"
	return []row{
		{Fields: mount("/etc/passwd"), Stock: anything, Husk: absent, Why: entry, In: in(
			"volumes/of numbers", "volumes/and a user of the request", "user/USER 5555", "user/USER 5555:6666", "user/USER 5555:adm", "user/USER 4711",
			"run-as/user in no file", "run-as/user and group, in no file", "groups/merge, a number without an entry", "files/linked, USER 5555:adm",
		)},
		{Fields: mount("/etc/group"), Stock: anything, Husk: absent, Why: entry, In: in(
			"volumes/of numbers", "volumes/and a user of the request", "user/USER 5555:6666", "user/USER nogrp", "user/USER 33", "user/USER short",
			"user/USER 2000", "user/USER twin", "user/USER web:4712", "user/USER svc.user-1", "user/USER last", "run-as/user and group, in no file",
			"files/broken, USER good", "files/broken, USER 501",
		)},
		{
			Fields: []string{"HOME of the process"}, In: in("user/USER nogrp", "user/USER 33", "user/USER short"), Stock: "", Husk: "/",
			Why: "an entry without a home means /, as no entry does, not an empty HOME",
		},
		{
			Fields: []string{"HOME of the process"}, In: in("user/USER second"), Stock: "/home/first", Husk: "/home/second",
			Why: "runc looks the number up again and finds the first entry with it; the home is that of the user who was named",
		},
		{
			Fields: []string{"process.user.additionalGids"}, In: in("files/broken, USER good", "files/broken, USER 501"), Stock: `\[501,0,502\]`, Husk: `\[501,502\]`,
			Why: "a group whose number is no number, or one of over 31 bits, is no group; CRI-O reads it as root's",
		},
		{
			Fields: []string{"outcome"}, Stock: made, Husk: refused, In: in(
				"files/broken, USER text", "files/broken, USER wrap", "files/broken, USER minus", "files/broken, USER two", "files/broken, USER grp",
				"files/broken, USER good:text", "files/broken, USER good:wrap"),
			Why: "a line whose number is no number, or not one of 31 bits, is no entry; CRI-O reads it as root's, or as one that wraps",
		},
		{
			Fields: []string{"outcome"}, Stock: made, Husk: refused, In: in("user/USER # a comment", "user/USER web:adm:x"),
			Why: "a comment is no entry, and a user has one colon; CRI-O takes the first for a user and drops the rest of the second",
		},
		{
			Fields: []string{"outcome"}, Stock: made, Husk: refused, In: in("run-as/group over 32 bits"),
			Why: "the number wraps to root's group in CRI-O; Kubernetes' API refuses it as Husk does",
		},
		{
			Fields: []string{"outcome"}, Stock: refused, Husk: made, In: in("run-as/username with a group that is unknown, and group"),
			Why: "a group that the request replaces is not looked up",
		},
	}
}
