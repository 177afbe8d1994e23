// Package podpull pulls what describes an image on behalf of one pod: the fetch of
// package manifestonly runs in a child of package sandbox, in the pod's network
// namespace with the pod's resolv.conf, or only in a cgroup of its own. The parent
// resolves the name, checks everything that comes back once more, and commits it;
// the child never opens the image store.
//
// The child sees the node's own files, at the node's own paths: auth files, certs.d,
// policies, registries.conf, /etc/hosts. Of the daemon's environment it gets the
// proxy variables, which CRI-O honours too, and those that say where such files are;
// see environment. They, the credentials and what the store holds of the image
// already go to it through a pipe: nothing of it is in its arguments, its
// environment as the kernel shows it, or on disk.
//
// What the parent cannot check again is the child's word that the signature policy
// accepts the image. CRI-O applies it once more when a container is created.
package podpull

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	"github.com/husk-cri/husk/internal/sandbox"
	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/manifestonly/registry"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
	"github.com/husk-cri/husk/pkg/registryauth"
)

// ChildCommand is the first argument that makes a binary run [RunChild].
const ChildCommand = "husk-pod-pull"

const (
	// maxAnswer bounds what the parent reads of a child that was taken over: all that
	// package manifestonly lets one image have, with what base64 adds.
	maxAnswer = 32 << 20
	// maxKnown bounds the blobs that are sent along so that they are not fetched again.
	// More would not fit into a request of package sandbox; they are fetched instead.
	maxKnown = 8 << 20
	// oomScore makes the child the first to go where memory is short: a pull is tried
	// again, a container of the pod is not.
	oomScore = 1000
)

// Names says what a name may stand for, from the node's files alone; the parent's
// manifestonly.Source does.
type Names interface {
	Resolve(ctx context.Context, name string) ([]imageref.Reference, error)
}

// Puller pulls in children. All fields are set before its first use.
type Puller struct {
	// Registry configures the child's source of images.
	Registry registry.Config
	// Names is the parent's own source, with the same configuration.
	Names Names
	// Store is where the images go. One that is a manifestonly.Reader and a
	// manifestonly.Holder too spares the requests for what it holds.
	Store manifestonly.Writer
	// Environ is the daemon's environment, as of os.Environ.
	Environ []string
	// Runner starts the children; its zero value is ready in a process where nobody
	// else reaps children.
	Runner sandbox.Runner

	count atomic.Uint64
}

// Pull is manifestonly.Pull with the fetch in a child at the place. A canceled
// context kills the child. Its errors have the same kinds and name the reference,
// never a credential; a network namespace or a cgroup that is gone is
// errdefs.Internal, and nothing is then asked from anywhere else. The stats of a
// pull that failed are not known.
func (p *Puller) Pull(ctx context.Context, place Place, req manifestonly.Request) (manifestonly.Result, error) {
	result, err := p.pull(ctx, place, req)
	if err != nil {
		return manifestonly.Result{}, req.Credentials.Scrub(err)
	}
	return result, nil
}

func (p *Puller) pull(ctx context.Context, place Place, req manifestonly.Request) (manifestonly.Result, error) {
	op := "pull " + req.Name + " in the pod"
	candidates, err := p.candidates(ctx, req.Name)
	if err != nil {
		return manifestonly.Result{}, err
	}
	if err := checkCgroup(place.Cgroup); err != nil {
		return manifestonly.Result{}, errdefs.New(errdefs.Internal, op, err)
	}
	var got answer
	err = p.Runner.Run(ctx, sandbox.Job{
		Command:     ChildCommand,
		Op:          op,
		Place:       place,
		Name:        fmt.Sprintf("pull-%d-%d", os.Getpid(), p.count.Add(1)),
		OOMScoreAdj: oomScore,
		MaxAnswer:   maxAnswer,
		Variables:   sandbox.Environment(p.Environ, place, files()...),
	}, order{
		Name:        req.Name,
		Credentials: registryauth.Open(req.Credentials),
		Namespace:   req.Namespace,
		Platform:    req.Platform,
		Limits:      req.Limits,
		Registry:    p.registry(place),
		Known:       p.known(ctx, candidates),
	}, &got)
	if err != nil {
		return manifestonly.Result{}, err
	}
	pulled := got.Image.Pulled
	if !slices.Contains(names(candidates), pulled.Reference.String()) {
		return manifestonly.Result{}, errdefs.Newf(errdefs.DigestMismatch, op, "the child answered with %s", pulled.Reference)
	}
	record, err := manifestonly.Commit(ctx, got.Image, limited{p.Store, req.Limits, op})
	if err != nil {
		return manifestonly.Result{}, err
	}
	return manifestonly.Result{Record: record, Pulled: pulled, Stats: got.Stats}, nil
}

// registry is the configuration for a place. In a pod's network the pod's owner says
// who answers.
func (p *Puller) registry(place Place) registry.Config {
	config := p.Registry
	config.UntrustedNetwork = place.NetNS != ""
	return config
}

// candidates returns what the name may stand for, as the child will call it: without
// the tag where there is a digest.
func (p *Puller) candidates(ctx context.Context, name string) ([]imageref.Reference, error) {
	refs, err := p.Names.Resolve(ctx, name)
	if err != nil {
		return nil, err
	}
	for i, ref := range refs {
		if ref.Digest().IsZero() {
			continue
		}
		if refs[i], err = ref.Pin(ref.Digest()); err != nil {
			return nil, errdefs.New(errdefs.InvalidArgument, "pull "+name, err)
		}
	}
	return refs, nil
}

func names(refs []imageref.Reference) []string {
	list := make([]string, 0, len(refs))
	for _, ref := range refs {
		list = append(list, ref.String())
	}
	return list
}

// known returns the blobs that the store holds of the image as it was last pulled by
// one of the references. They only save requests: what cannot be had is fetched.
func (p *Puller) known(ctx context.Context, refs []imageref.Reference) []blob {
	reader, reads := p.Store.(manifestonly.Reader)
	holder, holds := p.Store.(manifestonly.Holder)
	if !reads || !holds {
		return nil
	}
	var list []blob
	total := 0
	for _, ref := range refs {
		record, err := manifestonly.Named(ctx, reader, ref)
		if err != nil {
			continue
		}
		for _, d := range digests(record) {
			body, err := holder.Blob(ctx, ref.Repository(), d)
			if err != nil || total+len(body) > maxKnown {
				continue
			}
			total += len(body)
			list = append(list, blob{Repository: ref.Repository(), Digest: d, Bytes: body})
		}
	}
	return list
}

// digests are those of everything that describes the image of a record.
func digests(record imageref.Record) []digest.Digest {
	list := []digest.Digest{record.Manifest.Digest(), record.ConfigDigest.Digest()}
	for _, index := range record.Indexes {
		list = append(list, index.Digest())
	}
	return list
}

// limited is a store that takes nothing over the limits of the request. The child
// has checked them; here they are checked against the manifest that was verified.
type limited struct {
	manifestonly.Writer
	limits manifestonly.Limits
	op     string
}

// Put implements [manifestonly.Writer].
func (l limited) Put(ctx context.Context, img manifestonly.Image) (imageref.Record, error) {
	if err := l.limits.Check(l.op, img.Layers, img.LayerBytes); err != nil {
		return imageref.Record{}, err
	}
	return l.Writer.Put(ctx, img)
}
