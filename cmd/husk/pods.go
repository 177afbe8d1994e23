package main

import (
	"io"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/husk-cri/husk/internal/podrun"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// runPodView is a pod as pods shows it to scripts, as [containerView] is a container.
type runPodView struct {
	ID           string    `json:"id"`
	Name         string    `json:"name"`
	Status       string    `json:"status"`
	Network      string    `json:"network"`
	IPs          []string  `json:"ips"`
	Hostname     string    `json:"hostname"`
	Runtime      string    `json:"runtime"`
	CgroupParent string    `json:"cgroup_parent"`
	Containers   []string  `json:"containers"`
	Created      time.Time `json:"created"`
}

func newRunPodView(p podrun.Pod) runPodView {
	v := runPodView{
		ID: p.ID, Name: p.Name, Status: "down", Network: p.Network, IPs: []string{}, Hostname: p.Hostname, Runtime: p.Runtime.Name,
		CgroupParent: p.CgroupParent, Containers: []string{}, Created: p.Created,
	}
	if p.Running {
		v.Status, v.IPs = "up", append(v.IPs, p.IPs...)
	}
	for _, c := range p.Containers {
		v.Containers = append(v.Containers, c.Name)
	}
	return v
}

func podsCommand() *cli.Command {
	return &cli.Command{
		Name:        "pods",
		Usage:       "list the pods of husk run",
		UsageText:   "husk pods [--format text|json|TEMPLATE]",
		Description: "A pod is up as long as a container of it runs. Those of CRI-O are for crictl pods.",
		Flags:       []cli.Flag{formatFlag(formatText)},
		Before:      noArgs,
		Action: func(c *cli.Context) error {
			views := []runPodView{}
			r, err := openRunner(c, false)
			if err != nil && !errdefs.Is(err, errdefs.Unavailable) { // no storage, no pods
				return err
			}
			if err == nil {
				list, err := r.Pods(c.Context)
				if err != nil {
					return err
				}
				for _, p := range list {
					views = append(views, newRunPodView(p))
				}
			}
			return show(c, views, func(w io.Writer) error {
				var rows [][]string
				for _, v := range views {
					rows = append(rows, []string{
						short(v.ID), v.Name, v.Status, v.Network, strings.Join(v.IPs, ","), v.Runtime, strings.Join(v.Containers, ","), age(v.Created),
					})
				}
				return printTable(w, []string{"POD", "NAME", "STATUS", "NETWORK", "IP", "RUNTIME", "CONTAINERS", "AGE"}, rows)
			})
		},
	}
}
