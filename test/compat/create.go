package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	"github.com/husk-cri/husk/internal/testkit/signing"
)

// create is a container to be made, and what the policy says of the image's scope
// before the pull and before the container is made. Both are checked by stock
// CRI-O, the latter from what the store holds: Husk's record holds the signatures.
type create struct {
	scope         string
	before, after []signing.Requirement
}

// pod is a pod sandbox that containers are made in.
type pod struct {
	id     string
	config *cri.PodSandboxConfig
}

// busybox is Debian's static one.
const busybox = "/bin/busybox"

// setPolicy writes the node's policy with the requirements of one more scope. Both
// daemons read the file whenever they need it.
func (w *world) setPolicy(scope string, requirements []signing.Requirement) {
	policy := maps.Clone(w.conf.policy)
	policy[scope] = requirements
	if err := os.WriteFile(policyFile(w.rig), signing.Policy(policy), 0o600); err != nil {
		w.tb.Fatalf("write policy: %v", err)
	}
}

// make makes a container of the image and removes it again.
func (w *world) make(ctx context.Context, c *client, t testCase, handler string, image *cri.Image) error {
	p, err := w.pod(ctx, c, handler, t.pull.namespace)
	if err != nil {
		return fmt.Errorf("run pod: %w", err)
	}
	w.setPolicy(t.create.scope, t.create.after)
	made, err := c.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId: p.id, SandboxConfig: p.config,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "c"},
			Image:    &cri.ImageSpec{Image: image.GetId(), UserSpecifiedImage: t.pull.image},
			Command:  []string{"/busybox", "true"},
			LogPath:  "c.log",
			Linux:    &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: ownPID()}},
		},
	})
	if err != nil {
		return err
	}
	_, err = c.runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: made.GetContainerId()})
	return err
}

// ownPID is kubelet's default; other modes need an infra container, and that a
// capability.
func ownPID() *cri.NamespaceOption { return &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER} }

// pod returns the pod of a handler and a namespace.
func (w *world) pod(ctx context.Context, c *client, handler, namespace string) (pod, error) {
	if namespace == "" {
		namespace = "default"
	}
	name := "pod-" + handler + "-" + namespace
	if p, ok := w.pods[name]; ok {
		return p, nil
	}
	logs := filepath.Join(w.rig.Dir, "log", "pods", name)
	if err := os.MkdirAll(logs, 0o700); err != nil {
		return pod{}, err
	}
	p := pod{config: &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Uid: name, Namespace: namespace},
		LogDirectory: logs,
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent:    w.rig.Node.CgroupParent,
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: ownPID()},
		},
	}}
	made, err := c.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p.config, RuntimeHandler: handler})
	if err != nil {
		return pod{}, err
	}
	p.id = made.GetPodSandboxId()
	w.pods[name] = p
	return p, nil
}

// removePods removes all pods.
func (w *world) removePods(ctx context.Context) error {
	var errs []error
	for _, p := range w.pods {
		_, err := w.stock.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.id})
		_, err2 := w.stock.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.id})
		errs = append(errs, err, err2)
	}
	return errors.Join(errs...)
}

// createCases: the policy when a container is made.
func createCases(w *world) []testCase {
	r := w.registry("create", fakeregistry.Options{})
	w.add(plain("", r.Host()))
	w.conf.registriesD["create"] = signing.RegistriesD(r.Host(), r.LookasideURL(), true)
	program, err := os.ReadFile(busybox)
	if err != nil {
		w.tb.Fatalf("read busybox (install busybox-static): %v", err)
	}
	put := func(name string) fakeregistry.Pushed {
		image := w.image(name)
		image.Layers = append(image.Layers, w.layer(map[string][]byte{"busybox": program}))
		return w.pushImage(r, name, "v1", image)
	}
	accept, reject := []signing.Requirement{signing.Accept()}, []signing.Requirement{signing.Reject()}
	plain := put("unsigned/app")
	unsigned := func(name, want string, before, after []signing.Requirement) testCase {
		return testCase{Name: name, pull: pull{image: plain.Reference}, Want: want, create: &create{scope(plain.Reference), before, after}}
	}
	cases := []testCase{
		unsigned("accepted at the pull and later", classOK, accept, accept),
		unsigned("accepted at the pull, rejected later", classPolicy, accept, reject),
	}
	for i, s := range signers(w, r) {
		dir := []string{"simple", "key", "keyless"}[i]
		required := []signing.Requirement{s.requirement}
		p := put(dir + "/app")
		s.sign(signing.Claim{Reference: p.Reference, Digest: p.Digest}, true, dir+"/app")
		instance := put(dir + "/index")
		index := r.PushIndex(w.tb, dir+"/index", "v2", instance.Entry("linux", runtime.GOARCH, ""))
		s.sign(signing.Claim{Reference: index.Reference, Digest: instance.Digest}, true, dir+"/index")
		forged := put(dir + "/forged")
		s.sign(signing.Claim{Reference: forged.Reference, Digest: forged.Digest}, false, dir+"/forged")
		signed := func(name, image, want string, before []signing.Requirement) testCase {
			return testCase{Name: s.name + ": " + name, pull: pull{image: image}, Want: want, create: &create{scope(image), before, required}}
		}
		cases = append(cases,
			signed("required at the pull and later", p.Reference, classOK, required),
			signed("required later only", p.Reference, classOK, accept),
			signed("by digest", scope(p.Reference)+"@"+p.Digest.String(), classOK, required),
			signed("the instance of an index", index.Reference, classOK, required),
			signed("wrong key, required later only", forged.Reference, classPolicy, accept),
		)
	}
	return append(cases, unsigned("a signature is required later", classPolicy, accept, []signing.Requirement{signers(w, r)[1].requirement}))
}
