package main

import (
	v1 "github.com/google/go-containerregistry/pkg/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func userImage(user string) image { return of(func(config *v1.Config) { config.User = user }) }

// imageUsers: the user of the image in all its forms.
func imageUsers() []combination {
	var list []combination
	for _, user := range []string{
		"", "0", "root", "web", "1000", "web:adm", "web:4", "1000:1000", "1000:adm", "0:0", "root:web", "5555", "5555:6666", "5555:adm",
		"db", "nogrp", "33", "short", "2000", "second", "twin", "4711", "web:4712", "svc.user-1", "last", "web:", ":adm", ":4", ":", "+1000", "01000",
		"db:db", "web:noend",
	} {
		list = append(list, combination{Name: "USER " + user, Image: userImage(user)})
	}
	const user, group, limits, husk = "no matching entries in passwd file", "no matching entries in group file", "uids and gids must be in range", "is not in 0-2147483647"
	for _, c := range []struct{ user, stock, husk string }{
		{"unknown", user, `no user "unknown" in /etc/passwd`},
		{"web:unknown", group, `no group "unknown" in /etc/group`},
		{"5555:unknown", group, `no group "unknown" in /etc/group`},
		{"# a comment", "", "in /etc/passwd"},
		{" web", user, "in /etc/passwd"},
		{"-1", limits, husk},
		{"2147483648", limits, husk},
		{"4294967296", limits, husk},
		{"0:2147483648", limits, husk},
		{"0:-1", limits, husk},
		{"web:adm:x", "", "more than one colon"},
	} {
		list = append(list, combination{Name: "USER " + c.user, Image: userImage(c.user), Stock: c.stock, Husk: c.husk})
	}
	return list
}

// as is a request that says whom to run as: a username, and a user and a group unless negative.
func as(name, image, username string, uid, gid int64) combination {
	return combination{Name: name, Image: userImage(image), Request: security(func(s *cri.LinuxContainerSecurityContext) {
		s.RunAsUsername = username
		if uid >= 0 {
			s.RunAsUser = id(uid)
		}
		if gid >= 0 {
			s.RunAsGroup = id(gid)
		}
	})}
}

// requestUsers: the user of the request over the image's.
func requestUsers() []combination {
	refused := func(c combination, stock, husk string) combination {
		c.Stock, c.Husk = stock, husk
		return c
	}
	return []combination{
		as("user", "", "", 1000, -1), as("user over a name", "web:adm", "", 70, -1), as("user over numbers", "1:2", "", 1000, -1),
		as("root over a name", "web", "", 0, -1), as("user in no file", "web", "", 5555, -1), as("user over a name that is unknown", "unknown", "", 1000, -1),
		as("username", "", "web", -1, -1), as("username over numbers", "5555:6666", "db", -1, -1), as("username with a group", "", "web:adm", -1, -1),
		as("username that is a number", "web", "1000", -1, -1), as("username over user", "", "db", 1000, -1),
		as("username as kubelet makes it of the image's", "web:adm", "web", -1, -1),
		as("user and group", "web", "", 1000, 4), as("user and group, in no file", "web", "", 5555, 6666), as("user and root's group", "web:adm", "", 1000, 0),
		as("username and group", "", "web", -1, 63), as("username with a group, and group", "", "web:adm", -1, 63), as("root and group", "", "", 0, 4),
		refused(as("group alone", "web", "", -1, 4), "user group is specified without user", "run_as_group is set without"),
		refused(as("unknown username", "", "unknown", -1, -1), "no matching entries in passwd file", `no user "unknown"`),
		refused(as("user over 31 bits", "", "", 1<<31, -1), "uids and gids must be in range", "is not in 0-2147483647"),
		refused(as("group over 32 bits", "", "", 1000, 1<<32), "", "is not in 0-2147483647"),
		refused(as("username with a group that is unknown, and group", "", "web:unknown", -1, 63), "no matching entries in group file", ""),
	}
}

// groupCases: the groups beside the primary one.
func groupCases() []combination {
	groups := func(name string, image image, policy cri.SupplementalGroupsPolicy, change func(*cri.LinuxContainerSecurityContext), list ...int64) combination {
		return combination{Name: name, Image: image, Request: security(func(s *cri.LinuxContainerSecurityContext) {
			s.SupplementalGroups, s.SupplementalGroupsPolicy = list, policy
			if change != nil {
				change(s)
			}
		})}
	}
	const merge, strict = cri.SupplementalGroupsPolicy_Merge, cri.SupplementalGroupsPolicy_Strict
	asDB := func(s *cri.LinuxContainerSecurityContext) { s.RunAsUser, s.RunAsGroup = id(70), id(64) }
	large := groups("over 31 bits", userImage(""), merge, nil, 1<<31)
	large.Stock, large.Husk = "uids and gids must be in range", "is not in 0-2147483647"
	var many []int64
	for n := range int64(300) {
		many = append(many, 10000-n)
	}
	return []combination{
		groups("merge", userImage("web"), merge, nil, 30, 20), groups("strict", userImage("web"), strict, nil, 30, 20),
		groups("strict, and none of the request", userImage("web"), strict, nil), groups("merge, those it has", userImage("web"), merge, nil, 4, 1000, 10, 5),
		groups("strict, those it has", userImage("web"), strict, nil, 4, 1000, 10, 5), groups("twice", userImage(""), merge, nil, 7, 8, 7, 8),
		groups("merge, a number with an entry", userImage("70"), merge, nil, 9), groups("strict, a number with an entry", userImage("70"), strict, nil, 9),
		groups("merge, a number without an entry", userImage("5555"), merge, nil, 9), groups("merge, a group of the image", userImage("web:db"), merge, nil, 9),
		groups("strict, a group of the image", userImage("web:db"), strict, nil, 9), groups("merge, user and group of the request", userImage("web"), merge, asDB, 9),
		groups("strict, user and group of the request", userImage("web"), strict, asDB, 9), groups("root's, merge", userImage("root"), merge, nil, 0),
		groups("many", userImage("web"), merge, nil, many...), large,
	}
}

// fileCases: images without the files, with empty ones, links, and lines that are no entries.
func fileCases() []combination {
	files := func(layer, user, stock, husk string) combination {
		i := userImage(user)
		i.Layer = layer
		return combination{Name: layer + ", USER " + user, Image: i, Stock: stock, Husk: husk}
	}
	const unknown, missing = "no matching entries in passwd file", "in /etc/passwd"
	return []combination{
		files(none, "", "", ""), files(none, "0:0", "", ""), files(none, "1000", "", ""), files(none, "1000:1000", "", ""), files(none, "web", unknown, missing),
		files(none, "root", unknown, missing), files(none, "0:root", "no matching entries in group file", "in /etc/group"),
		files(blank, "", "", ""), files(blank, "1000", "", ""), files(blank, "web", unknown, missing),
		files(linked, "web", "", ""), files(linked, "5555:adm", "", ""),
		files(folders, "", "is a directory", "not a regular file"), files(folders, "1000", "is a directory", "not a regular file"),
		files(broken, "good", "", ""), files(broken, "good:right", "", ""), files(broken, "501", "", ""),
		files(broken, "text", "", missing), files(broken, "wrap", "", missing), files(broken, "minus", "", missing), files(broken, "two", "", missing),
		files(broken, "grp", "", missing), files(broken, "big", "unable to setup user: invalid argument", missing), files(broken, "good:text", "", "in /etc/group"), files(broken, "good:wrap", "", "in /etc/group"),
	}
}
