package crictl

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func imageCommands() []*cli.Command {
	annotation := &cli.StringSliceFlag{Name: "annotation", Aliases: []string{"a"}, Usage: "image annotation key=value"}
	handler := &cli.StringFlag{Name: "runtime-handler", Usage: "runtime handler of the image spec (not in cri-tools' crictl)"}
	return []*cli.Command{
		{
			Name: "pull", Usage: "pull an image", ArgsUsage: "IMAGE", Action: pull,
			Flags: []cli.Flag{
				annotation, handler,
				&cli.StringFlag{Name: "creds", Usage: "credentials user[:password]"},
				&cli.StringFlag{Name: "auth", Usage: "base64 credentials"},
				&cli.StringFlag{Name: "pod-config", Usage: "file with the pod's configuration"},
			},
		},
		{
			Name: "images", Aliases: []string{"image"}, Usage: "list images", ArgsUsage: "[IMAGE]", Action: listImages,
			Flags: []cli.Flag{outputFlag("table"), quietFlag(), &cli.BoolFlag{Name: "digests", Usage: "show digests"}},
		},
		{
			Name: "inspecti", Usage: "status of images", ArgsUsage: "IMAGE...", Action: inspecti,
			Flags: []cli.Flag{outputFlag("json"), quietFlag(), annotation, handler},
		},
		{Name: "rmi", Usage: "remove images", ArgsUsage: "IMAGE...", Action: rmi, Flags: []cli.Flag{handler}},
		{Name: "imagefsinfo", Usage: "usage of the image file systems", Action: imageFsInfo, Flags: []cli.Flag{outputFlag("json")}},
	}
}

func imageSpec(c *cli.Context, image string) (*runtimeapi.ImageSpec, error) {
	annotations, err := keyValues(c.StringSlice("annotation"))
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ImageSpec{Image: image, Annotations: annotations, RuntimeHandler: c.String("runtime-handler")}, nil
}

func pull(c *cli.Context) error {
	if err := needArgs(c, 1, 1); err != nil {
		return err
	}
	spec, err := imageSpec(c, c.Args().First())
	if err != nil {
		return err
	}
	var auth *runtimeapi.AuthConfig
	if creds := c.String("creds"); creds != "" {
		user, password, _ := strings.Cut(creds, ":")
		auth = &runtimeapi.AuthConfig{Username: user, Password: password}
	} else if a := c.String("auth"); a != "" {
		auth = &runtimeapi.AuthConfig{Auth: a}
	}
	var pod *runtimeapi.PodSandboxConfig
	if path := c.String("pod-config"); path != "" {
		if pod, err = podConfig(path); err != nil {
			return err
		}
	}
	s, err := imageService(c)
	if err != nil {
		return err
	}
	ref, err := s.PullImage(c.Context, spec, auth, pod)
	if err != nil {
		return fmt.Errorf("pulling image: %w", err)
	}
	return printLines(c, []string{"Image is up to date for " + ref})
}

func listImages(c *cli.Context) error {
	if err := needArgs(c, 0, 1); err != nil {
		return err
	}
	s, err := imageService(c)
	if err != nil {
		return err
	}
	var filter *runtimeapi.ImageFilter
	if c.NArg() == 1 {
		filter = &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: c.Args().First()}}
	}
	list, err := s.ListImages(c.Context, filter)
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	if c.Bool("quiet") {
		return printIDs(c, list)
	}
	if c.String("output") == "json" {
		return printJSON(c, &runtimeapi.ListImagesResponse{Images: list})
	}
	head := []string{"IMAGE", "TAG", "IMAGE ID", "SIZE"}
	if c.Bool("digests") {
		head = append(head, "DIGESTS")
	}
	rows := [][]string{head}
	for _, i := range list {
		rows = append(rows, imageRows(i, c.Bool("digests"))...)
	}
	return printTable(c, rows)
}

func imageRows(i *runtimeapi.Image, digests bool) [][]string {
	tags := i.GetRepoTags()
	if len(tags) == 0 {
		tags = []string{"<none>:<none>"}
	}
	rows := make([][]string, 0, len(tags))
	for _, t := range tags {
		at := strings.LastIndex(t, ":")
		row := []string{t[:at], t[at+1:], short(i.GetId()), strconv.FormatUint(i.GetSize_(), 10)}
		if digests {
			row = append(row, strings.Join(i.GetRepoDigests(), ","))
		}
		rows = append(rows, row)
	}
	return rows
}

func status(c *cli.Context, s internalapi.ImageManagerService, image string, verbose bool) (*runtimeapi.ImageStatusResponse, error) {
	spec, err := imageSpec(c, image)
	if err != nil {
		return nil, err
	}
	st, err := s.ImageStatus(c.Context, spec, verbose)
	if err != nil {
		return nil, fmt.Errorf("image status for %q: %w", image, err)
	}
	if st.GetImage() == nil {
		return nil, fmt.Errorf("no such image %q present", image)
	}
	return st, nil
}

func inspecti(c *cli.Context) error {
	if err := needArgs(c, 1, -1); err != nil {
		return err
	}
	s, err := imageService(c)
	if err != nil {
		return err
	}
	for _, image := range c.Args().Slice() {
		st, err := status(c, s, image, !c.Bool("quiet"))
		if err != nil {
			return err
		}
		if err := printStatus(c, st.GetImage(), st.GetInfo()); err != nil {
			return err
		}
	}
	return nil
}

func rmi(c *cli.Context) error {
	s, err := imageService(c)
	if err != nil {
		return err
	}
	return eachArg(c, "Deleted:", func(image string) error {
		if _, err := status(c, s, image, false); err != nil {
			return err
		}
		spec, err := imageSpec(c, image)
		if err != nil {
			return err
		}
		if err := s.RemoveImage(c.Context, spec); err != nil {
			return fmt.Errorf("remove image %q: %w", image, err)
		}
		return nil
	})
}

func imageFsInfo(c *cli.Context) error {
	s, err := imageService(c)
	if err != nil {
		return err
	}
	info, err := s.ImageFsInfo(c.Context)
	if err != nil {
		return fmt.Errorf("image fs info: %w", err)
	}
	return printJSON(c, info)
}
