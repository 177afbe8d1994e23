package rig

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// Pod is a pod sandbox and the files that describe it.
type Pod struct {
	ID     string
	Config string // its configuration, a file
	logs   string
	name   string
}

// RunPod runs a pod sandbox with a runtime handler.
func (r *Rig) RunPod(ctx context.Context, name, handler string) (Pod, error) {
	p := Pod{name: name, Config: filepath.Join(r.Dir, "tmp", name+"-pod.json"), logs: filepath.Join(r.Dir, "log", "pods", name)}
	config := map[string]any{
		"metadata":      map[string]any{"name": name, "uid": name + "-uid", "namespace": "default", "attempt": 0},
		"log_directory": p.logs,
		"linux": map[string]any{
			"cgroup_parent": r.Node.CgroupParent,
			// 1 is CONTAINER, kubelet's default; another one makes an infra container, whose
			// oom_score_adj of -998 needs CAP_SYS_RESOURCE.
			"security_context": map[string]any{"namespace_options": map[string]any{"pid": 1}},
		},
	}
	if err := os.MkdirAll(p.logs, 0o755); err != nil {
		return Pod{}, err
	}
	if err := writeJSON(p.Config, config); err != nil {
		return Pod{}, err
	}
	id, err := r.Crictl(ctx, "runp", "-r", handler, p.Config)
	p.ID = id
	return p, err
}

// Container is what a pod runs: the image, and what is to differ from what it says.
type Container struct {
	Name  string
	Image string // what PullImage answered
	Asked string // the reference the user wrote
	Args  []string
}

// Create creates a container in a pod and returns its ID.
func (r *Rig) Create(ctx context.Context, p Pod, c Container) (string, error) {
	config := map[string]any{
		"metadata": map[string]any{"name": c.Name},
		"image":    map[string]any{"image": c.Image, "user_specified_image": c.Asked},
		"args":     c.Args,
		"log_path": c.Name + ".log",
		"linux":    map[string]any{"security_context": map[string]any{"namespace_options": map[string]any{"pid": 1}}},
	}
	path := filepath.Join(r.Dir, "tmp", p.name+"-"+c.Name+".json")
	if err := writeJSON(path, config); err != nil {
		return "", err
	}
	return r.Crictl(ctx, "create", p.ID, path, p.Config)
}

func writeJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	return os.WriteFile(path, data, 0o600)
}

// Inspect runs one of crictl's inspect commands and decodes its JSON into v.
func (r *Rig) Inspect(ctx context.Context, v any, command, id string) error {
	out, err := r.Crictl(ctx, command, "-o", "json", id)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), v); err != nil {
		return fmt.Errorf("parse crictl %s: %w", command, err)
	}
	return nil
}
