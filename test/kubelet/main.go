// Command kubelet is a CRI client that makes the calls of kubelet 1.34 for a pod,
// field for field and in its order, and decides as kubelet decides. Each function that
// stands for one of kubelet's names it, with the file below pkg/kubelet of
// k8s.io/kubernetes v1.34.4. It prints, as JSON, what every call was answered.
//
//	kubelet run     [FLAG...] --name NAME --container NAME=IMAGE... [-- COMMAND...]
//	kubelet sync    [FLAG...] --name NAME [--after DURATION] [--creds USER:PASSWORD...]
//	kubelet restart [FLAG...] --name NAME
//	kubelet delete  [FLAG...] --name NAME
//	kubelet gc      [FLAG...] [--name-handler]
//
// What it knows of a pod lies below --dir between two runs. A container that does not
// come to run is no error of this command: the answer says kubelet's reason. sync is the
// next sync of a pod, in which kubelet tries those again; new secrets replace the pod's.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/husk-cri/husk/test/internal/rig"
)

// kubeletTimeout bounds one run: a few pods' calls.
const kubeletTimeout = 2 * time.Minute

func main() {
	rig.Main("kubelet", kubeletTimeout, func(ctx context.Context, args []string) error { return run(ctx, args, os.Stdout) })
}

const sayVerb = "say run, sync, restart, delete or gc"

// settings are the command line.
type settings struct {
	node
	socket                  string
	ensureSecretPulledImage bool
	nameHandler             bool
	pod                     pod
}

func parse(verb string, args []string) (settings, error) {
	var s settings
	flags := flag.NewFlagSet("kubelet "+verb, flag.ContinueOnError)
	flags.StringVar(&s.socket, "socket", "", "the CRI `socket`")
	flags.StringVar(&s.Root, "dir", "", "`directory` of what this kubelet keeps")
	flags.StringVar(&s.CgroupParent, "cgroup-parent", "", "`cgroup` of the pods")
	flags.StringVar(&s.DNS, "dns", "", "`address` of the pods' resolver")
	flags.Func("gate", "`on|off`: the feature gate RuntimeClassInImageCriApi (default off)", func(v string) error {
		s.Gate = v == "on"
		if v != "on" && v != "off" {
			return errors.New("want on or off")
		}
		return nil
	})
	flags.DurationVar(&s.After, "after", 0, "how much later it is than the clock says")
	flags.BoolVar(&s.ensureSecretPulledImage, "ensure-secret-pulled-images", false, "the feature gate KubeletEnsureSecretPulledImages")
	flags.BoolVar(&s.nameHandler, "name-handler", false, "gc: name the handler of what is removed, which kubelet does not")
	p := &s.pod
	flags.StringVar(&p.Name, "name", "", "the pod's `name`")
	flags.StringVar(&p.Namespace, "namespace", "default", "the pod's `namespace`")
	flags.StringVar(&p.Handler, "handler", "", "the runtime `handler` of its runtime class")
	flags.StringVar(&p.Policy, "policy", "IfNotPresent", "`imagePullPolicy`")
	flags.BoolVar(&p.RunAsNonRoot, "run-as-non-root", false, "its securityContext.runAsNonRoot")
	flags.Func("run-as-user", "its securityContext.runAsUser, a `uid`", func(v string) error {
		uid, err := strconv.ParseInt(v, 10, 64)
		p.RunAsUser = &uid
		return err
	})
	flags.Func("annotation", "`KEY=VALUE` of the pod", func(v string) error { return pair(v, &p.Annotations) })
	flags.Func("label", "`KEY=VALUE` of the pod", func(v string) error { return pair(v, &p.Labels) })
	flags.Func("container", "`NAME=IMAGE`", func(v string) error {
		name, image, ok := strings.Cut(v, "=")
		if !ok {
			return errors.New("want NAME=IMAGE")
		}
		p.Containers = append(p.Containers, container{Name: name, Image: image})
		return nil
	})
	flags.Func("creds", "`USER:PASSWORD` of an imagePullSecret; each is tried", func(v string) error {
		user, password, ok := strings.Cut(v, ":")
		if !ok {
			return errors.New("want USER:PASSWORD")
		}
		p.Secrets = append(p.Secrets, secret{Name: fmt.Sprintf("%s-%d", user, len(p.Secrets)), Username: user, Password: password})
		return nil
	})
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	for i := range p.Containers {
		p.Containers[i].Command = flags.Args()
	}
	for i := range p.Secrets {
		p.Secrets[i].Namespace = p.Namespace
	}
	p.UID = p.Name + "-uid"
	if s.socket == "" || s.Root == "" {
		return s, errors.New("give --socket and --dir")
	}
	return s, nil
}

func pair(v string, into *map[string]string) error {
	key, value, ok := strings.Cut(v, "=")
	if !ok {
		return errors.New("want KEY=VALUE")
	}
	if *into == nil {
		*into = map[string]string{}
	}
	(*into)[key] = value
	return nil
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	if len(args) == 0 {
		return errors.New(sayVerb)
	}
	s, err := parse(args[0], args[1:])
	if err != nil {
		return err
	}
	c, err := dial(s.socket)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.conn.Close()) }()
	k := &kubelet{cri: c, node: s.node}
	if s.ensureSecretPulledImage {
		k.pulled = &recordFile{filepath.Join(s.Root, "pulled.json")}
	}
	result, err := k.do(ctx, args[0], s)
	if err != nil {
		return err
	}
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(result)
}

func (k *kubelet) do(ctx context.Context, verb string, s settings) (any, error) {
	p := &s.pod
	switch verb {
	case "run":
		if err := k.node.admit(p, time.Now()); err != nil {
			return nil, err
		}
		result, err := k.syncPod(ctx, p)
		return result, errors.Join(err, k.node.save(p))
	case "sync":
		secrets := slices.Clone(p.Secrets) // load writes into them
		if err := k.node.load(p); err != nil {
			return nil, err
		}
		if len(secrets) > 0 {
			p.Secrets = secrets
		}
		result, err := k.startContainers(ctx, p)
		return result, errors.Join(err, k.node.save(p))
	case "restart":
		if err := k.node.load(p); err != nil {
			return nil, err
		}
		result, err := k.restart(ctx, p)
		return result, errors.Join(err, k.node.save(p))
	case "delete":
		if err := k.node.load(p); err != nil {
			return nil, err
		}
		result, err := k.remove(ctx, p)
		if err != nil {
			return nil, err
		}
		return result, errors.Join(os.RemoveAll(k.node.podDir(p)), os.RemoveAll(k.node.logDir(p)))
	case "gc":
		return k.deleteUnusedImages(ctx, s.nameHandler)
	}
	return nil, fmt.Errorf("%q: %s", verb, sayVerb)
}

// save keeps a pod for the next run, load gets it back by its UID.
func (n node) save(p *pod) error {
	data, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(n.podDir(p), "pod.json"), data, 0o600)
}

func (n node) load(p *pod) error {
	data, err := os.ReadFile(filepath.Join(n.podDir(p), "pod.json"))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, p); err != nil {
		return fmt.Errorf("parse pod %s: %w", p.Name, err)
	}
	return nil
}
