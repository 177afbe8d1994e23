package bundles

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/husk-cri/husk/pkg/imageref"
)

// Container is what Husk keeps of one container. Its JSON is the stored one.
type Container struct {
	// ID is 64 lower-case hex digits; see [NewID].
	ID string `json:"id"`
	// Name is unique among Husk's containers of the store: letters, digits, "_", "."
	// and "-", a letter or digit first, at most 253 characters, and no ID.
	Name string `json:"name"`
	// Sandbox marks the pod's own container. Its ID is the pod's, and it has no Image.
	Sandbox bool `json:"sandbox,omitempty"`
	// Pod is the pod that the container is in. Every member has the same.
	Pod Pod `json:"pod"`
	// Image is what the container was made from.
	Image Image `json:"image,omitzero"`
	// Runtime is what runs it.
	Runtime Runtime `json:"runtime"`
	// Args is the command line, for people to read: [Store.Create] cuts it at
	// [MaxArgs]. The whole of it is in the template.
	Args []string `json:"args,omitempty"`
	// Terminal and Stdin say what its process was given; AutoRemove, that the record
	// goes when the process has ended.
	Terminal   bool `json:"terminal,omitempty"`
	Stdin      bool `json:"stdin,omitempty"`
	AutoRemove bool `json:"auto_remove,omitempty"`
	// Labels are the user's.
	Labels map[string]string `json:"labels,omitempty"`
	// Created is when the record was made; zero lets [Store.Create] set it.
	Created time.Time `json:"created"`
	// State is how its process is; the zero value is made "created" by [Store.Create].
	State State `json:"state"`
}

// Pod is a group of containers that share namespaces. It has no record of its own:
// it is kept in the metadata of each of its members, and the sandbox's is what counts.
type Pod struct {
	// ID is that of the sandbox container; Name is unique among Husk's pods of the
	// store and has the form of a container's.
	ID   string `json:"id"`
	Name string `json:"name"`
	// Hostname is the pod's; "" where it has none of its own.
	Hostname string `json:"hostname,omitempty"`
	// Network is the CNI network's name, "host" or "none", as the caller wants it;
	// Netns the path of the network namespace, absolute and clean; IPs the addresses in it.
	Network string   `json:"network,omitempty"`
	Netns   string   `json:"netns,omitempty"`
	IPs     []string `json:"ips,omitempty"`
	// CgroupParent is the cgroup that holds those of the members, absolute and clean, and
	// never the root, which holds every process of the machine.
	CgroupParent string `json:"cgroup_parent,omitempty"`
	// Created is when the pod was made; zero lets [Store.Create] of the sandbox set it.
	Created time.Time `json:"created"`
}

// Image names the image of a container.
type Image struct {
	// RecordID is the image's ID in containers/storage. The container holds it: nobody
	// can remove the image before the container.
	RecordID imageref.StorageID `json:"record_id,omitzero"`
	// ImageID is the image ID that people see.
	ImageID imageref.ImageID `json:"image_id,omitzero"`
	// Ref is the pinned reference, repo@digest; UserImage what the user asked for.
	Ref       string `json:"ref,omitempty"`
	UserImage string `json:"user_image,omitempty"`
}

// Runtime is the shim v2 that runs a container.
type Runtime struct {
	// Name is how the user named it; Path is the shim's binary; ConfigPath its
	// configuration, "" for none. Both paths are absolute.
	Name       string `json:"name,omitempty"`
	Path       string `json:"path,omitempty"`
	ConfigPath string `json:"config_path,omitempty"`
}

// Status is a step in a container's life.
type Status string

// The steps of a container's life.
const (
	StatusCreated Status = "created"
	StatusRunning Status = "running"
	StatusExited  Status = "exited"
)

// State is how a container's process is.
type State struct {
	Status Status `json:"status"`
	// StartedAt and FinishedAt are zero until then.
	StartedAt  time.Time `json:"started_at,omitzero"`
	FinishedAt time.Time `json:"finished_at,omitzero"`
	// ExitCode says something only of an exited container; Reason why it ended, where
	// that was not the process itself.
	ExitCode int    `json:"exit_code,omitempty"`
	Reason   string `json:"reason,omitempty"`
}

// MaxArgs bounds the bytes of [Container.Args]: a command line may have 2 MiB, and
// containers/storage keeps the metadata of all containers in memory and in one file,
// which it writes anew at every change.
const MaxArgs = 4 << 10

// argsCut is the last of the Args that were cut.
const argsCut = "..."

// NewID returns a random ID for a container.
func NewID() string {
	var b [32]byte
	rand.Read(b[:]) // never fails: it ends the process before
	return hex.EncodeToString(b[:])
}

var nameForm = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,252}$`)

// valid says what is wrong with a container, whether it is to be stored or was read.
func (c *Container) valid() error {
	switch {
	case !isID(c.ID):
		return fmt.Errorf("the container ID %q is not 64 lower-case hex digits", c.ID)
	case !isName(c.Name):
		return fmt.Errorf("%q is no name for a container", c.Name)
	case !isID(c.Pod.ID):
		return fmt.Errorf("the pod ID %q is not 64 lower-case hex digits", c.Pod.ID)
	case !isName(c.Pod.Name):
		return fmt.Errorf("%q is no name for a pod", c.Pod.Name)
	case c.Sandbox != (c.ID == c.Pod.ID):
		return fmt.Errorf("the pod's own container, and no other, has the pod's ID")
	case c.Sandbox != c.Image.RecordID.IsZero():
		return fmt.Errorf("a container has an image, and the pod's own has none")
	case !slices.Contains([]Status{StatusCreated, StatusRunning, StatusExited}, c.State.Status):
		return fmt.Errorf("%q is no status of a container", c.State.Status)
	}
	for _, at := range []time.Time{c.Created, c.Pod.Created, c.State.StartedAt, c.State.FinishedAt} {
		if at.Year() < 1 || at.Year() > 9999 { // it could not be written
			return fmt.Errorf("a time in the year %d", at.Year())
		}
		if at.Location() != time.UTC { // it would not be what it is once it is written anew
			return fmt.Errorf("%s is not in UTC", at)
		}
	}
	return errors.Join(c.Pod.valid(), c.Runtime.valid())
}

// valid says what is wrong with what root acts on in the name of a pod: it enters, unmounts
// and removes the namespace, and kills what is in the cgroup.
func (p *Pod) valid() error {
	switch {
	case p.Network != "" && !nameForm.MatchString(p.Network):
		return fmt.Errorf("%q is no name for a network", p.Network)
	case p.Netns != "" && !isPath(p.Netns):
		return fmt.Errorf("%q is no network namespace: want an absolute, clean path", p.Netns)
	case p.CgroupParent != "" && !isPath(p.CgroupParent):
		return fmt.Errorf("%q is no cgroup for a pod: want an absolute, clean path below the root", p.CgroupParent)
	}
	for _, ip := range p.IPs {
		if _, err := netip.ParseAddr(ip); err != nil {
			return err
		}
	}
	return nil
}

// valid says what is wrong with what root executes.
func (r *Runtime) valid() error {
	for _, path := range []string{r.Path, r.ConfigPath} {
		if path != "" && (!filepath.IsAbs(path) || strings.ContainsRune(path, 0)) {
			return fmt.Errorf("the runtime's %q is not an absolute path", path)
		}
	}
	return nil
}

// isPath reports whether s is an absolute, clean path of something below the root.
func isPath(s string) bool {
	return filepath.IsAbs(s) && filepath.Clean(s) == s && s != "/" && !strings.ContainsRune(s, 0)
}

// isName reports whether s may name a container or a pod. An ID may not: it would
// stand before the container that has it.
func isName(s string) bool { return nameForm.MatchString(s) && !isID(s) }

func isID(s string) bool {
	id, err := imageref.ParseStorageID(s)
	return err == nil && id.String() == s
}

// identity is what a change may not touch.
func (c *Container) identity() Container {
	return Container{ID: c.ID, Name: c.Name, Sandbox: c.Sandbox, Pod: c.Pod, Image: c.Image, Created: c.Created}
}

// sameIdentity reports whether a change left alone what it may not touch.
func sameIdentity(a, b *Container) bool { return reflect.DeepEqual(a.identity(), b.identity()) }

// shorten cuts the Args at MaxArgs.
func shorten(args []string) []string {
	room := MaxArgs
	for i, a := range args {
		if len(a) > room {
			short := append([]string{}, args[:i]...)
			return append(short, strings.ToValidUTF8(a[:room], "")+argsCut)
		}
		room -= len(a)
	}
	return args
}
