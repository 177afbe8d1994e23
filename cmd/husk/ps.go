package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/husk-cri/husk/bundlegen/bundles"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// commandWidth is how much of a command line a table shows, in characters.
const commandWidth = 32

// containerView is a container as ps shows it to scripts. Its names, in JSON and in
// templates, are an interface: they may be added to, not changed.
type containerView struct {
	ID         string    `json:"id"`
	Name       string    `json:"name"`
	Pod        string    `json:"pod"`
	PodID      string    `json:"pod_id"`
	Image      string    `json:"image"`
	ImageRef   string    `json:"image_ref"`
	ImageID    string    `json:"image_id"`
	Command    []string  `json:"command"`
	Runtime    string    `json:"runtime"`
	Status     string    `json:"status"`
	ExitCode   int       `json:"exit_code"`
	Reason     string    `json:"reason"`
	IPs        []string  `json:"ips"`
	Network    string    `json:"network"`
	Created    time.Time `json:"created"`
	StartedAt  time.Time `json:"started_at,omitzero"`
	FinishedAt time.Time `json:"finished_at,omitzero"`
}

func newContainerView(c bundles.Container) containerView {
	v := containerView{
		ID: c.ID, Name: c.Name, Pod: c.Pod.Name, PodID: c.Pod.ID, Image: c.Image.UserImage, ImageRef: c.Image.Ref, ImageID: c.Image.ImageID.String(),
		Command: append([]string{}, c.Args...), Runtime: c.Runtime.Name, Status: string(c.State.Status), ExitCode: c.State.ExitCode, Reason: c.State.Reason,
		IPs: []string{}, Network: c.Pod.Network, Created: c.Created, StartedAt: c.State.StartedAt, FinishedAt: c.State.FinishedAt,
	}
	if c.State.Status != bundles.StatusExited {
		v.IPs = append(v.IPs, c.Pod.IPs...)
	}
	return v
}

// said is the status as people read it.
func (v containerView) said() string {
	switch v.Status {
	case string(bundles.StatusExited):
		return fmt.Sprintf("exited (%d) %s ago", v.ExitCode, age(v.FinishedAt))
	case string(bundles.StatusRunning):
		return "up " + age(v.StartedAt)
	default:
		return v.Status
	}
}

func psCommand() *cli.Command {
	return &cli.Command{
		Name:        "ps",
		Usage:       "list the containers of husk run",
		UsageText:   "husk ps [--all] [--format text|json|TEMPLATE]",
		Description: "Those of CRI-O are for crictl ps.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "list those that have ended, too"},
			formatFlag(formatText),
		},
		Before: noArgs,
		Action: func(c *cli.Context) error {
			views := []containerView{}
			r, err := openRunner(c, false)
			if err != nil && !errdefs.Is(err, errdefs.Unavailable) { // no storage, no containers
				return err
			}
			if err == nil {
				list, err := r.List(c.Context)
				if err != nil {
					return err
				}
				for _, container := range list {
					if c.Bool("all") || container.State.Status != bundles.StatusExited {
						views = append(views, newContainerView(container))
					}
				}
			}
			return show(c, views, func(w io.Writer) error {
				var rows [][]string
				for _, v := range views {
					rows = append(rows, []string{
						short(v.ID), v.Name, v.Pod, v.Image, fmt.Sprintf("%.*s", commandWidth, strings.Join(v.Command, " ")), v.Runtime, age(v.Created), v.said(),
					})
				}
				return printTable(w, []string{"CONTAINER", "NAME", "POD", "IMAGE", "COMMAND", "RUNTIME", "AGE", "STATUS"}, rows)
			})
		},
	}
}
