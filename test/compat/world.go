package main

import (
	"archive/tar"
	"bytes"
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	"github.com/husk-cri/husk/test/internal/rig"
)

// testCase is one pull, and what must come of it, from both.
type testCase struct {
	Topic, Name string
	pull        pull
	// create, where set, is a container to be made of the image after the pull.
	create *create
	// arm, where set, is called before each of the two pulls.
	arm func()
	// Want is the class of the outcome, see classify.
	Want string
	// From is the registry that gave the manifest, by the name in world; "" where
	// the case is about something else.
	From string
	// User is who was asked as there, see fakeregistry.Request.User.
	User string
	// Secret is a registry that must see no credentials, from neither.
	Secret string
	// Differs documents what stock CRI-O does not do and Husk does.
	Differs *difference
}

// difference is what Husk does where it is meant to differ from stock CRI-O.
type difference struct {
	// Why is the reason, for the reader of the report.
	Why string
	// Want and User are Husk's; those of the case are then stock CRI-O's.
	Want, User string
	// Absent is a registry that Husk must not ask, where CRI-O does.
	Absent string
}

// world is a node with its registries and the configuration of all cases.
type world struct {
	tb         fakeregistry.TB
	rig        *rig.Rig
	conf       conf
	registries map[string]*fakeregistry.Registry
	layers     map[digest.Digest]bool
	stock      *client
	husk       *client
	pods       map[string]pod
}

func newWorld(tb fakeregistry.TB, r *rig.Rig) *world {
	return &world{
		tb: tb, rig: r, conf: newConf(),
		registries: map[string]*fakeregistry.Registry{}, layers: map[digest.Digest]bool{}, pods: map[string]pod{},
	}
}

// prepare makes the registries, the images and the configuration of every topic,
// or of one.
func (w *world) prepare(only string) []testCase {
	var all []testCase
	for _, topic := range []struct {
		name  string
		cases func(*world) []testCase
	}{
		{"mirrors", mirrorCases},
		{"names", nameCases},
		{"transport", transportCases},
		{"credentials", credentialCases},
		{"auth-file", authFileCases},
		{"policy", policyCases},
		{"images", imageCases},
		{"faults", faultCases},
		{"create", createCases},
	} {
		if only != "" && only != topic.name {
			continue
		}
		for _, c := range topic.cases(w) {
			c.Topic = topic.name
			all = append(all, c)
		}
	}
	return all
}

// registry makes a registry on the node's address: on the loopback address
// nothing is verified.
func (w *world) registry(name string, opts fakeregistry.Options) *fakeregistry.Registry {
	if opts.Listen == "" {
		opts.Listen = w.rig.Node.Network.IP + ":0"
	}
	r := fakeregistry.New(w.tb, opts)
	w.registries[name] = r
	return r
}

// push pushes an image whose only layer is a true one, as stock CRI-O unpacks it.
// The content follows from the label: the same label is the same image.
func (w *world) push(r *fakeregistry.Registry, repository, tag, label string) fakeregistry.Pushed {
	return w.pushImage(r, repository, tag, w.image(label))
}

func (w *world) pushImage(r *fakeregistry.Registry, repository, tag string, image fakeregistry.Image) fakeregistry.Pushed {
	p := r.Push(w.tb, repository, tag, image)
	for _, l := range p.Layers {
		w.layers[l] = true
	}
	return p
}

func (w *world) image(label string) fakeregistry.Image {
	return fakeregistry.Image{
		Config: imgspec.Image{Config: imgspec.ImageConfig{Labels: map[string]string{"label": label}, User: "1000"}},
		Layers: [][]byte{w.layer(map[string][]byte{"label": []byte(label)})},
		Edit:   layerType(imgspec.MediaTypeImageLayer), // uncompressed: its digest is its diff ID
	}
}

// layer is a layer with executable files in its root.
func (w *world) layer(files map[string][]byte) []byte {
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(files[name]))}); err != nil {
			w.tb.Fatalf("write layer: %v", err)
		}
		if _, err := tw.Write(files[name]); err != nil {
			w.tb.Fatalf("write layer: %v", err)
		}
	}
	if err := tw.Close(); err != nil {
		w.tb.Fatalf("write layer: %v", err)
	}
	return b.Bytes()
}

func layerType(mediaType string) func(*imgspec.Manifest) {
	return func(m *imgspec.Manifest) {
		for i := range m.Layers {
			m.Layers[i].MediaType = mediaType
		}
	}
}
