package main

import (
	"context"
	"errors"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/husk-cri/husk/bundlegen/bundles"
	"github.com/husk-cri/husk/internal/podrun"
	"github.com/husk-cri/husk/internal/sandboxes"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// The kinds of things that rm removes, and the options that choose one.
const (
	kindContainer = "container"
	kindPod       = "pod"
	kindImage     = "image"
)

func rmCommand(pods sandboxes.Client) *cli.Command {
	return &cli.Command{
		Name:  "rm",
		Usage: "remove layer-less images, and containers and pods of husk run",
		Description: "An image goes by its ID with all its references, by a reference only with that one; one that a container was made " +
			"from is not removed. Ordinary images are CRI-O's; use crictl rmi for them. " +
			"The last container of a pod takes the pod with it. What a name stands for more than once is refused until an option chooses. " +
			"With --sandbox, the layers of an image are removed from the store of that pod; its layer-less image stays.",
		UsageText: "husk rm [options] CONTAINER|POD|REFERENCE|IMAGE-ID...",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "kill containers that run"},
			&cli.BoolFlag{Name: kindContainer, Usage: "remove a container"},
			&cli.BoolFlag{Name: kindPod, Usage: "remove a pod with its containers"},
			&cli.BoolFlag{Name: kindImage, Usage: "remove an image"},
			&cli.StringFlag{Name: "sandbox", Usage: "remove it from the pod whose sandbox `ID` begins so (crictl pods)"},
		},
		Action: func(c *cli.Context) error {
			if c.IsSet("sandbox") {
				return removeFromSandbox(c, pods)
			}
			if c.NArg() < 1 {
				_, err := oneArg(c, "a container, a pod, a reference or an image ID")
				return err
			}
			for _, arg := range c.Args().Slice() {
				if strings.HasPrefix(arg, "-") {
					return errdefs.Newf(errdefs.InvalidArgument, c.Command.Name, "options go before names; usage: %s", c.Command.UsageText)
				}
			}
			if err := needsRoot(c); err != nil {
				return err
			}
			r, err := openRunner(c, false)
			if err != nil {
				return err
			}
			var errs []error
			for _, name := range c.Args().Slice() {
				errs = append(errs, r.removeNamed(c, name))
			}
			return errors.Join(errs...)
		},
	}
}

// target is what a name stands for: at most one thing of each kind.
type target struct {
	container *bundles.Container
	pod       *podrun.Pod
	image     *imageref.Match
}

// kinds lists what there is.
func (t target) kinds() []string {
	var kinds []string
	for kind, there := range map[string]bool{kindContainer: t.container != nil, kindPod: t.pod != nil, kindImage: t.image != nil} {
		if there {
			kinds = append(kinds, kind)
		}
	}
	return kinds
}

// removeNamed removes what a name stands for, and prints the name.
func (r *runner) removeNamed(c *cli.Context, name string) error {
	t, err := r.target(c, name)
	if err != nil {
		return err
	}
	switch {
	case len(t.kinds()) > 1:
		return errdefs.Newf(errdefs.InvalidArgument, "remove "+name, "it may be several things: say which by --container, --pod or --image")
	case t.container != nil:
		err = r.Remove(c.Context, *t.container, c.Bool("force"))
	case t.pod != nil:
		err = r.RemovePod(c.Context, *t.pod, c.Bool("force"))
	default:
		if err = r.remove(c.Context, *t.image); errdefs.Is(err, errdefs.InUse) { // of a storage ID that the user has never seen
			return errdefs.Newf(errdefs.InUse, "remove "+name, "a container was made from it (husk ps -a, crictl ps -a)")
		}
	}
	if err != nil {
		return err
	}
	return printLine(c.App.Writer, name)
}

// target finds what a name stands for, of the kinds that the options leave.
func (r *runner) target(c *cli.Context, name string) (t target, err error) {
	all := !c.Bool(kindContainer) && !c.Bool(kindPod) && !c.Bool(kindImage)
	var errs []error
	if all || c.Bool(kindContainer) {
		found, err := r.FindContainer(c.Context, name)
		if err == nil {
			t.container = &found
		} else {
			errs = append(errs, err)
		}
	}
	if all || c.Bool(kindPod) {
		found, err := r.FindPod(c.Context, name)
		switch {
		case err != nil:
			errs = append(errs, err)
		case t.container != nil && t.container.Pod.ID == found.ID && len(found.Containers) == 1:
			// A pod of its own goes with its container.
		default:
			t.pod = &found
		}
	}
	if all || c.Bool(kindImage) {
		found, err := r.find(c.Context, name)
		if err == nil {
			t.image = &found
		} else {
			errs = append(errs, err)
		}
	}
	if len(t.kinds()) > 0 {
		return t, nil
	}
	for _, err := range errs { // the first that says more than that it is not there
		if !errdefs.Is(err, errdefs.NotFound) {
			return t, err
		}
	}
	return t, errs[len(errs)-1]
}

// remove removes one reference, or the records of an ID.
func (n *node) remove(ctx context.Context, found imageref.Match) error {
	if !found.By.IsZero() {
		return n.store.RemoveReference(ctx, found.By)
	}
	for _, r := range found.Records {
		if err := n.store.Remove(ctx, r.StorageID); err != nil {
			return err
		}
	}
	return nil
}
