package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/husk-cri/husk/internal/sandboxes"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// shortID is how much of an ID a table shows, as crictl does: enough to name it again.
const shortID = 13

// podView says which pod something is in. Its names, and those below, are an interface
// like those of imageView.
type podView struct {
	Sandbox   string `json:"sandbox"`
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
}

func (v podView) name() string { return v.Namespace + "/" + v.Pod }

// sandboxImageView is an image in a pod's store.
type sandboxImageView struct {
	podView
	Reference      string    `json:"reference"`
	ImageID        string    `json:"image_id"`
	ManifestDigest string    `json:"manifest_digest"`
	Layers         int       `json:"layers"`
	Bytes          int64     `json:"bytes"`
	PulledAt       time.Time `json:"pulled_at"`
	TookSeconds    float64   `json:"took_seconds"`
	Containers     []string  `json:"containers"`
	StoreKind      string    `json:"store_kind"`
	StoreLimit     int64     `json:"store_limit"`
	StoreUsed      int64     `json:"store_used"`
}

// sandboxPullView is a pull under way.
type sandboxPullView struct {
	podView
	Reference  string    `json:"reference"`
	Layers     int       `json:"layers"`
	LayersDone int       `json:"layers_done"`
	Bytes      int64     `json:"bytes"`
	BytesDone  int64     `json:"bytes_done"`
	StartedAt  time.Time `json:"started_at"`
}

func podViewOf(s sandboxes.Sandbox) podView {
	return podView{Sandbox: s.ID, Namespace: s.Namespace, Pod: s.Name}
}

// sandboxImages lists what the pods hold.
func sandboxImages(c *cli.Context, pods sandboxes.Client) error {
	if err := needsRoot(c); err != nil {
		return err
	}
	list, err := pods.List(c.Context)
	if err != nil {
		return err
	}
	views := []sandboxImageView{}
	for _, s := range list {
		for _, i := range s.Images {
			views = append(views, sandboxImageView{
				podView: podViewOf(s), Reference: i.Reference, ImageID: i.ID.String(), ManifestDigest: i.Manifest.String(),
				Layers: i.Layers, Bytes: i.Bytes, PulledAt: i.PulledAt, TookSeconds: i.Took.Seconds(), Containers: append([]string{}, i.Containers...),
				StoreKind: s.Store.Kind, StoreLimit: s.Store.Limit, StoreUsed: s.Store.Used,
			})
		}
	}
	err = show(c, views, func(w io.Writer) error {
		var rows [][]string
		for _, v := range views {
			rows = append(rows, []string{
				v.name(), short(v.Sandbox), v.Reference, short(v.ImageID), humanBytes(v.Bytes), age(v.PulledAt),
			})
		}
		return printTable(w, []string{"POD", "SANDBOX", "REFERENCE", "IMAGE ID", "UNPACKED", "AGE"}, rows)
	})
	return errors.Join(err, silent(c, list))
}

// silent names the pods that did not answer, where no script reads.
func silent(c *cli.Context, list []sandboxes.Sandbox) error {
	for _, s := range list {
		if s.Err == nil {
			continue
		}
		if _, err := fmt.Fprintln(c.App.ErrWriter, "husk:", oneLine(s.Err.Error())); err != nil {
			return err
		}
	}
	return nil
}

// removeFromSandbox removes an image from one pod's store.
func removeFromSandbox(c *cli.Context, pods sandboxes.Client) error {
	name, err := oneArg(c, "a reference or an image ID")
	if err != nil {
		return err
	}
	if err := needsRoot(c); err != nil {
		return err
	}
	id, err := pods.Find(c.String("sandbox"))
	if err != nil {
		return err
	}
	held, err := pods.Images(c.Context, id)
	if err != nil {
		return err
	}
	image, err := among(held, name)
	if err != nil {
		return err
	}
	freed, err := pods.Remove(c.Context, id, image)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.App.Writer, "%s: %s are free again\n", name, humanBytes(freed))
	return err
}

// among returns what a pod's shim calls the image with the name: a reference, a manifest
// digest, or an image ID or the beginning of one.
func among(held []sandboxes.Image, name string) (string, error) {
	op := "remove image " + name
	id := strings.TrimPrefix(name, "sha256:")
	var found []string
	for _, i := range held {
		if i.Reference == name || i.Manifest.String() == name {
			return name, nil
		}
		if long := i.ID.String(); id != "" && strings.HasPrefix(long, id) && !slices.Contains(found, long) {
			found = append(found, long)
		}
	}
	switch len(found) {
	case 0:
		return "", errdefs.Newf(errdefs.NotFound, op, "the pod's store has no such image: name it by its ID or repository@digest (husk images --sandboxes)")
	case 1:
		return found[0], nil
	default:
		return "", errdefs.Newf(errdefs.InvalidArgument, op, "%d images have such IDs", len(found))
	}
}

func short(id string) string { return fmt.Sprintf("%.*s", shortID, id) }

// age is how long ago something was, roughly, as crictl has it.
func age(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	d := max(0, time.Since(t))
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}
