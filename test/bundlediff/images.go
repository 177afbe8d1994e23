package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/husk-cri/husk/pkg/imageref"
)

// image says what to build.
type image struct {
	// Layer is the root filesystem, see layerOf; "" is the usual one.
	Layer string
	// Config is the image config's "config", with Docker's additions.
	Config v1.Config
	// Annotations are the manifest's.
	Annotations map[string]string
	// Docker makes it schema 2 instead of an OCI image.
	Docker bool
}

// key is the same for images that are the same.
func (i image) key() string {
	data, err := json.Marshal(i)
	if err != nil {
		return fmt.Sprintf("%#v", i)
	}
	return fmt.Sprintf("%x", sha256.Sum256(data))[:16]
}

// pushed is an image in the registry, and what Husk's record of it says.
type pushed struct {
	ref    string
	kind   string
	record imageref.Record
	pulled imageref.PulledReference
}

// pushAll builds each image that the combinations need and pushes it once.
func pushAll(ctx context.Context, registry string, list []combination) (map[string]pushed, error) {
	all := map[string]pushed{}
	layers := map[string]v1.Layer{}
	for _, c := range list {
		key := c.Image.key()
		if _, ok := all[key]; ok {
			continue
		}
		kind := fmt.Sprint(c.Image.kind(), c.Image.Docker)
		if layers[kind] == nil {
			l, err := layer(c.Image.kind(), c.Image.Docker)
			if err != nil {
				return nil, err
			}
			layers[kind] = l
		}
		p, err := push(ctx, registry+"/bundlediff:"+key, c.Image, layers[kind])
		if err != nil {
			return nil, fmt.Errorf("image of %s: %w", c.name(), err)
		}
		all[key] = p
	}
	return all, nil
}

func (i image) kind() string {
	if i.Layer == "" {
		return usual
	}
	return i.Layer
}

func push(ctx context.Context, ref string, i image, layer v1.Layer) (pushed, error) {
	built, err := build(i, layer)
	if err != nil {
		return pushed{}, err
	}
	tag, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		return pushed{}, err
	}
	if err := remote.Write(tag, built, remote.WithContext(ctx)); err != nil {
		return pushed{}, fmt.Errorf("push %s: %w", ref, err)
	}
	return recordOf(ref, i.kind(), built)
}

func build(i image, layer v1.Layer) (v1.Image, error) {
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	if i.Docker {
		base = empty.Image
	}
	built, err := mutate.AppendLayers(base, layer)
	if err != nil {
		return nil, err
	}
	config, err := built.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Config = "linux", architecture, i.Config
	config.Author, config.Created = "someone", v1.Time{Time: time.Unix(1700000000, 0).UTC()}
	if built, err = mutate.ConfigFile(built, config); err != nil {
		return nil, err
	}
	if i.Annotations == nil {
		return built, nil
	}
	annotated, ok := mutate.Annotations(built, i.Annotations).(v1.Image)
	if !ok {
		return nil, fmt.Errorf("annotate image: it is none")
	}
	return annotated, nil
}

// recordOf reads what the host has of an image by Husk: manifest and config.
func recordOf(ref, kind string, i v1.Image) (pushed, error) {
	parsed, err := imageref.ParseReference(ref)
	if err != nil {
		return pushed{}, err
	}
	digest, err := i.Digest()
	if err != nil {
		return pushed{}, err
	}
	manifest, err := imageref.ParseManifestDigest(digest.String())
	if err != nil {
		return pushed{}, err
	}
	hash, err := i.ConfigName()
	if err != nil {
		return pushed{}, err
	}
	config, err := imageref.ParseConfigDigest(hash.String())
	if err != nil {
		return pushed{}, err
	}
	raw, err := i.RawConfigFile()
	if err != nil {
		return pushed{}, err
	}
	record := imageref.Record{StorageID: imageref.RecordID(manifest), Manifest: manifest, ConfigDigest: config}
	if err := json.Unmarshal(raw, &record.Image); err != nil {
		return pushed{}, err
	}
	pulled := imageref.PulledReference{Reference: parsed, Digest: manifest}
	record.References = []imageref.PulledReference{pulled}
	return pushed{ref: ref, kind: kind, record: record, pulled: pulled}, nil
}
