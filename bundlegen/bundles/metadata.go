package bundles

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/containers/storage"
	"github.com/opencontainers/go-digest"
)

const (
	// version is that of the stored JSON. Every change to it that an older Husk would
	// lose or misread has a new one.
	version = 1
	// MaxMetadata bounds the stored JSON of one container, in bytes: containers/storage
	// keeps that of all containers in memory, CRI-O's process included. What is longer
	// is not stored, and not parsed if somebody else stored it.
	MaxMetadata = 64 << 10
	// MaxSpec bounds a config.json in bytes. The kernel allows 2 MiB for arguments and
	// environment, which JSON can make six times as long; a file past the bound was not
	// written by Husk.
	MaxSpec = 16 << 20
)

// The names that a container has in containers/storage, where names are unique. No
// other tool has a colon in its names, so Husk's clash with nobody's.
const (
	namePrefix = "husk:container:"
	podPrefix  = "husk:pod:"
)

// ErrDamaged is in every error about a container whose metadata cannot be read, or is
// of another version of Husk. Such a container can be removed, and nothing else.
var ErrDamaged = errors.New("the container's record is damaged")

// ErrExists is in every error about a name or an ID that is taken.
var ErrExists = errors.New("it exists already")

// metadata is storage.Container.Metadata. It has one key, which CRI-O's own metadata
// does not have, and none that CRI-O's has.
type metadata struct {
	Husk *stored `json:"husk"`
}

// stored is Husk's part of a container's metadata.
type stored struct {
	Version int `json:"version"`
	// Template and TemplateSize are the digest and size of the template.
	Template     digest.Digest `json:"template"`
	TemplateSize int64         `json:"template_size"`
	Container    Container     `json:"container"`
}

// storedNames are the names of a container in containers/storage.
func (c *Container) storedNames() []string {
	names := []string{namePrefix + c.Name}
	if c.Sandbox {
		names = append(names, podPrefix+c.Pod.Name)
	}
	return names
}

// huskName returns the name of a container that is Husk's; false for any other.
func huskName(rec *storage.Container) (string, bool) {
	for _, n := range rec.Names {
		if name, ok := strings.CutPrefix(n, namePrefix); ok {
			return name, true
		}
	}
	return "", false
}

func (s stored) encode() (string, error) {
	b, err := json.Marshal(metadata{&s})
	if err != nil {
		return "", err
	}
	if len(b) > MaxMetadata {
		return "", fmt.Errorf("its metadata would have %d bytes, the limit is %d: are the labels so long?", len(b), MaxMetadata)
	}
	return string(b), nil
}

// errVersion is in the errors of decode about another version's record.
var errVersion = errors.New("another version of husk wrote it")

// decode reads the metadata of a container that is Husk's. Unknown fields are refused
// as another version is: this Husk would drop them at the next change. What it returns
// is as whole as Husk stores it, whoever wrote the text.
func decode(rec *storage.Container) (stored, error) {
	if len(rec.Metadata) > MaxMetadata {
		return stored{}, fmt.Errorf("%w: its metadata has %d bytes, the limit is %d", ErrDamaged, len(rec.Metadata), MaxMetadata)
	}
	var m metadata
	dec := json.NewDecoder(strings.NewReader(rec.Metadata))
	dec.DisallowUnknownFields()
	err := dec.Decode(&m)
	if err == nil && m.Husk == nil {
		err = errVersion
	}
	switch {
	case err != nil:
		if otherVersion(rec.Metadata) {
			err = errVersion
		}
		return stored{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	case m.Husk.Version != version:
		return stored{}, fmt.Errorf("%w: %w", ErrDamaged, errVersion)
	case dec.Decode(&struct{}{}) != io.EOF:
		return stored{}, fmt.Errorf("%w: its metadata goes on after its end", ErrDamaged)
	}
	if err := m.Husk.matches(rec); err != nil {
		return stored{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return *m.Husk, nil
}

// otherVersion reports whether metadata that cannot be read is JSON of another version.
func otherVersion(text string) bool {
	var loose struct {
		Husk struct {
			Version int `json:"version"`
		} `json:"husk"`
	}
	return json.Unmarshal([]byte(text), &loose) == nil && loose.Husk.Version != version
}

// matches says where the metadata and the record that has it disagree: metadata that
// was copied to another container says nothing about that one.
func (s *stored) matches(rec *storage.Container) error {
	c := &s.Container
	if err := c.valid(); err != nil {
		return err
	}
	switch {
	case c.ID != rec.ID:
		return fmt.Errorf("its metadata is that of container %s", c.ID)
	case slices.ContainsFunc(c.storedNames(), func(n string) bool { return !slices.Contains(rec.Names, n) }):
		return fmt.Errorf("its names are %q, and its metadata says %q", rec.Names, c.storedNames())
	case c.Image.RecordID.String() != rec.ImageID:
		return fmt.Errorf("it was made from image %q, and its metadata says %q", rec.ImageID, c.Image.RecordID)
	case s.TemplateSize < 0 || s.TemplateSize > MaxSpec:
		return fmt.Errorf("a template of %d bytes", s.TemplateSize)
	}
	return s.Template.Validate()
}

// encodeSpec returns a config.json.
func encodeSpec(spec any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(spec); err != nil {
		return nil, err
	}
	if b.Len() > MaxSpec {
		return nil, fmt.Errorf("the config.json would have %d bytes, the limit is %d", b.Len(), MaxSpec)
	}
	return b.Bytes(), nil
}
