package main

import (
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// processCases: entrypoint, cmd, command and args, each there or not, and what may be in them.
func processCases() []combination {
	var list []combination
	for bits := range 16 {
		has := func(bit int) bool { return bits&(1<<bit) != 0 }
		var names []string
		name := func(what string, there bool) bool {
			if there {
				names = append(names, what)
			}
			return there
		}
		c := combination{Image: of(func(config *v1.Config) {
			config.Cmd = nil
			if name("entrypoint", has(0)) {
				config.Entrypoint = []string{"/bin/sh", "-c"}
			}
			if name("cmd", has(1)) {
				config.Cmd = []string{"/bin/echo", "from the image"}
			}
		})}
		command, args := name("command", has(2)), name("args", has(3))
		c.Request = func(config *cri.ContainerConfig) {
			if command {
				config.Command = []string{"/bin/env", "A=1"}
			}
			if args {
				config.Args = []string{"/bin/echo", "from the request"}
			}
		}
		if bits == 0 {
			names, c.Stock, c.Husk = []string{"nothing"}, "no command specified", "no command specified"
		}
		c.Name = strings.Join(names, "+")
		list = append(list, c)
	}
	return append(list,
		combination{Name: "what looks like variables, quotes and lines", Image: of(nil), Request: func(config *cri.ContainerConfig) {
			config.Command = []string{"/bin/sh", "$(HOME)", "$$(A)", "$A", "a b", `"'\`, "one\ntwo\ttab", "", "Ünïcode", "-"}
			config.Envs = envs("A", "1")
		}},
		combination{Name: "empty lists", Image: of(func(config *v1.Config) { config.Entrypoint = []string{} }), Request: func(config *cri.ContainerConfig) {
			config.Command, config.Args = []string{}, []string{}
		}},
		combination{Name: "empty words", Image: of(func(config *v1.Config) { config.Entrypoint, config.Cmd = []string{"/bin/echo", ""}, []string{"", "x"} })},
		combination{Name: "a program by name", Image: of(func(config *v1.Config) { config.Cmd = []string{"echo"} })},
	)
}

// envs are the variables of a request: names and values.
func envs(pairs ...string) (list []*cri.KeyValue) {
	for i := 0; i < len(pairs); i += 2 {
		list = append(list, &cri.KeyValue{Key: pairs[i], Value: []byte(pairs[i+1])})
	}
	return list
}

// envCases: the image's variables and the request's.
func envCases() []combination {
	env := func(name string, image []string, request ...string) combination {
		return combination{Name: name, Image: of(func(config *v1.Config) { config.Env = image }),
			Request: func(config *cri.ContainerConfig) { config.Envs = envs(request...) }}
	}
	return []combination{
		env("none", nil),
		env("of the image", []string{"PATH=/bin", "B=2", "A=1"}),
		env("of the request", nil, "B", "2", "A", "1"),
		env("of both", []string{"Z=1", "Y=2"}, "X", "3", "W", "4"),
		env("the request's wins", []string{"A=image", "B=image", "C=image"}, "C", "request", "A", "request"),
		env("twice in the image", []string{"A=1", "B=2", "A=3"}),
		env("twice in the image, and a request", []string{"A=1", "B=2", "A=3"}, "C", "4"),
		env("twice in the request", []string{"A=0"}, "A", "1", "B", "2", "A", "3"),
		env("twice in both", []string{"A=1", "A=2"}, "A", "3", "A", "4"),
		env("no equals sign in the image, and a request", []string{"A=1", "NOTHING", "B=2"}, "C", "3"),
		env("no name in the image", []string{"=x", "A=1"}),
		env("no name in the image, and a request", []string{"=x", "A=1"}, "B", "2"),
		env("no name in the request", []string{"A=1"}, "", "x", "B", "2"),
		env("no value", []string{"A=", "B=2"}, "B", "", "C", ""),
		env("equals signs", []string{"A=b=c", "B=="}, "C", "=d=e="),
		env("not expanded again", []string{"A=$(B)", "B=$A"}, "C", "$(A)", "D", "$$(A)", "E", "prefix-1-expanded"),
		env("lines, spaces and letters", []string{"A=one\ntwo"}, "B", " padded ", "c.d-e", "Ünïcode", "a", "lower"),
		env("those of the node, by the image", []string{"PATH=/opt/bin:/bin", "TERM=dumb", "HOSTNAME=image", "HOME=/image"}),
		env("those of the node, by the request", []string{"A=1"}, "TERM", "vt100", "HOSTNAME", "request", "HOME", "/request", "PATH", "/bin"),
		env("an empty HOME of the image", []string{"HOME="}),
		env("an empty HOME of the request", []string{"HOME=/image"}, "HOME", ""),
	}
}

// cwdCases: the working directory, and the one that is made.
func cwdCases() []combination {
	cwd := func(name, image, request string) combination {
		return combination{Name: name, Image: of(func(config *v1.Config) { config.WorkingDir = image }),
			Request: func(config *cri.ContainerConfig) { config.WorkingDir = request }}
	}
	relative := cwd("relative", "work", "")
	relative.Stock, relative.Husk = "must be an absolute path", "is not an absolute path"
	file := cwd("a file", "", "/srv/file")
	file.Stock, file.Husk = "not a directory", "not a directory"
	owned := cwd("missing, and a user", "/made/by/root", "")
	owned.Image.Config.User = "web"
	return []combination{
		cwd("none", "", ""), cwd("of the image, there", "/srv/there", ""), cwd("of the image, missing", "/made/deep/down", ""),
		cwd("of the request", "/not-made", "/srv"), cwd("of the request, missing", "/srv/there", "/made"),
		cwd("by a link", "/var/link/below", ""), cwd("by a link to nothing", "/var/dangling", ""),
		cwd("not clean", "/srv//there/./x/../y/", ""), cwd("above the root", "/../../up", ""), owned, relative, file,
	}
}

func stopCases() []combination {
	stop := func(name, image string, request cri.Signal) combination {
		return combination{Name: name, Image: of(func(config *v1.Config) { config.StopSignal = image }),
			Request: func(config *cri.ContainerConfig) { config.StopSignal = request }}
	}
	return []combination{
		stop("of the image", "SIGUSR1", 0), stop("a number", "37", 0), stop("no signal at all", "HELLO", 0),
		stop("of the request", "", cri.Signal_SIGNAL_SIGHUP), stop("the request's wins", "SIGUSR1", cri.Signal_SIGNAL_SIGRTMINPLUS3),
	}
}

// volumeCases: the directories of the image's volumes.
func volumeCases() []combination {
	volumes := func(name, user string, paths ...string) combination {
		return combination{Name: name, Image: of(func(config *v1.Config) {
			config.User, config.Volumes = user, map[string]struct{}{}
			for _, p := range paths {
				config.Volumes[p] = struct{}{}
			}
		})}
	}
	mounted := volumes("under a mount of the request", "web", "/data/below")
	mounted.Request = func(config *cri.ContainerConfig) {
		config.Mounts = []*cri.Mount{{ContainerPath: "/data", HostPath: "/usr/share"}}
	}
	work := volumes("and the working directory", "web", "/data")
	work.Image.Config.WorkingDir = "/data/work"
	asked := volumes("and a user of the request", "web", "/data")
	asked.Request = security(func(s *cri.LinuxContainerSecurityContext) {
		s.RunAsUser, s.RunAsGroup = id(4321), id(1234)
	})
	return []combination{
		volumes("of root", "", "/data"), volumes("of a name", "web", "/data", "/more/deep/down"), volumes("of numbers", "5555:6666", "/data"),
		volumes("there already", "web", "/srv/there", "/srv"), volumes("by a link", "web", "/var/link/vol"),
		volumes("not clean", "", "/data//x/../y/"), volumes("relative", "", "data/x"), volumes("under a mount", "", "/dev/shm/x"),
		volumes("the root", "", "/"), asked, work, mounted,
	}
}

// imageCases: what of an image has no effect on a container, and its formats.
func imageCases() []combination {
	docker := of(func(config *v1.Config) {
		config.User, config.Entrypoint, config.Cmd, config.StopSignal = "web", []string{"/bin/sh"}, []string{"-c", "true"}, "SIGQUIT"
		config.Healthcheck = &v1.HealthConfig{Test: []string{"CMD", "/bin/true"}, Interval: 1, Retries: 3}
		config.Shell, config.OnBuild, config.ArgsEscaped, config.MacAddress = []string{"/bin/sh"}, []string{"RUN x"}, true, "00:11:22:33:44:55"
		config.Hostname, config.Domainname, config.Tty, config.OpenStdin = "image", "example", true, true
	})
	docker.Docker = true
	annotated := of(nil)
	annotated.Annotations = map[string]string{
		"org.opencontainers.image.title": "a title", "org.opencontainers.image.stopSignal": "SIGUSR2", "seccomp-profile.kubernetes.cri-o.io": "x",
		"io.kubernetes.cri-o.TTY": "true", "example.com/key": "value",
	}
	all := of(func(config *v1.Config) {
		*config = v1.Config{
			User: "web:adm", Env: []string{"A=1"}, Entrypoint: []string{"/bin/echo"}, Cmd: []string{"x"}, WorkingDir: "/work", StopSignal: "SIGINT",
			Volumes: map[string]struct{}{"/data": {}}, ExposedPorts: map[string]struct{}{"80/tcp": {}}, Labels: map[string]string{"l": "v"},
		}
	})
	return []combination{
		{Name: "exposed ports", Image: of(func(config *v1.Config) {
			config.ExposedPorts = map[string]struct{}{"80": {}, "443/tcp": {}, "53/udp": {}, "x": {}}
		})},
		{Name: "labels", Image: of(func(config *v1.Config) {
			config.Labels = map[string]string{"maintainer": "me", "io.kubernetes.cri-o.TTY": "true", "org.opencontainers.image.stopSignal": "SIGUSR2"}
		})},
		{Name: "health check", Image: of(func(config *v1.Config) {
			config.Healthcheck = &v1.HealthConfig{Test: []string{"CMD-SHELL", "exit 1"}, Interval: 1, Retries: 1}
		})},
		{Name: "annotations of the manifest", Image: annotated},
		{Name: "docker's schema 2 and all its settings", Image: docker},
		{Name: "everything at once", Image: all},
	}
}

// requestCases: what bundlegen's callers take from the request.
func requestCases() []combination {
	with := func(name string, change func(*cri.ContainerConfig)) combination {
		return combination{Name: name, Image: of(nil), Request: change}
	}
	caps := func(name string, c *cri.Capability) combination {
		return with(name, security(func(s *cri.LinuxContainerSecurityContext) { s.Capabilities = c }))
	}
	return []combination{
		with("labels and annotations", func(config *cri.ContainerConfig) {
			config.Labels = map[string]string{"io.kubernetes.container.name": "c", "app": "x"}
			config.Annotations = map[string]string{"io.kubernetes.container.hash": "1", "example.com/key": "a\nb"}
		}),
		with("read-only root", security(func(s *cri.LinuxContainerSecurityContext) { s.ReadonlyRootfs = true })),
		with("no new privileges", security(func(s *cri.LinuxContainerSecurityContext) { s.NoNewPrivs = true })),
		with("terminal", func(config *cri.ContainerConfig) { config.Tty = true }),
		with("mounts", func(config *cri.ContainerConfig) {
			config.Mounts = []*cri.Mount{{ContainerPath: "/data", HostPath: "/usr/share"}, {ContainerPath: "/data/doc", HostPath: "/usr/share/doc"}}
		}),
		with("oom score", func(config *cri.ContainerConfig) {
			config.Linux.Resources = &cri.LinuxContainerResources{OomScoreAdj: 500}
		}),
		with("default seccomp profile", security(func(s *cri.LinuxContainerSecurityContext) {
			s.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
		})),
		caps("capabilities more and less", &cri.Capability{AddCapabilities: []string{"SYS_PTRACE"}, DropCapabilities: []string{"KILL"}}),
		caps("no capabilities", &cri.Capability{DropCapabilities: []string{"ALL"}}),
		caps("capabilities of its own", &cri.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_BIND_SERVICE", "CAP_CHOWN"}}),
		with("all that decides the process", func(config *cri.ContainerConfig) {
			config.Command, config.Args, config.WorkingDir = []string{"/bin/sh"}, []string{"-c", "true"}, "/made"
			config.Envs, config.StopSignal = envs("A", "1"), cri.Signal_SIGNAL_SIGUSR1
			s := config.Linux.SecurityContext
			s.RunAsUser, s.RunAsGroup, s.SupplementalGroups = id(1000), id(4), []int64{9, 8}
		}),
	}
}

func id(n int64) *cri.Int64Value { return &cri.Int64Value{Value: n} }
