package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/husk-cri/husk/test/internal/rig"
)

// startTimeout bounds how long a daemon may take until it answers.
const startTimeout = 30 * time.Second

// start writes the configuration, restarts stock CRI-O on it, starts husk on the
// same, both with the credential helper in their PATH, and connects to both.
func (w *world) start(ctx context.Context, opts rig.Options) error {
	if err := w.conf.write(w.rig); err != nil {
		return err
	}
	if err := w.restartCRIO(ctx); err != nil {
		return err
	}
	if err := w.startHusk(ctx, opts); err != nil {
		return err
	}
	var err error
	if w.stock, err = dial(ctx, w.rig.Node.CRIO.Socket); err != nil {
		return fmt.Errorf("stock crio: %w", err)
	}
	w.tb.Cleanup(w.stock.close)
	if w.husk, err = dial(ctx, w.rig.Node.FrontSocket); err != nil {
		return fmt.Errorf("husk: %w", err)
	}
	w.tb.Cleanup(w.husk.close)
	return nil
}

func (w *world) path() string {
	return helperDir(w.rig) + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
}

// restartCRIO starts the node's CRI-O as testnode did, but for the PATH.
func (w *world) restartCRIO(ctx context.Context) error {
	data, err := os.ReadFile(filepath.Join(w.rig.Dir, "node.json"))
	if err != nil {
		return err
	}
	var node struct {
		Daemons map[string]struct {
			Argv []string `json:"argv"`
			Env  []string `json:"env"`
		} `json:"daemons"`
	}
	if err := json.Unmarshal(data, &node); err != nil {
		return fmt.Errorf("parse node.json: %w", err)
	}
	if _, err := w.rig.Tool(ctx, "testnode", "crio-stop", "--dir", w.rig.Dir); err != nil {
		return err
	}
	args := []string{"start", "--dir", w.rig.Dir}
	for _, e := range node.Daemons["crio"].Env {
		if !strings.HasPrefix(e, "PATH=") {
			args = append(args, "--env", e)
		}
	}
	args = append(args, "--env", "PATH="+w.path(), "crio")
	_, err = w.rig.Tool(ctx, "testnode", append(args, node.Daemons["crio"].Argv...)...)
	return err
}

func (w *world) startHusk(ctx context.Context, opts rig.Options) error {
	bin, err := filepath.Abs(opts.Bin)
	if err != nil {
		return err
	}
	c := w.rig.Node.CRIO
	if err := writeTOML(w.rig.HuskConfig(), map[string]any{
		"listen": w.rig.Node.FrontSocket, "backend": c.Socket, "crio_config": c.Config, "crio_config_dir": c.ConfigDir,
		"registries_conf": c.RegistriesConf, "registries_conf_dir": registriesConfDir(w.rig),
	}); err != nil {
		return err
	}
	_, err = w.rig.Tool(ctx, "testnode", "start", "--dir", w.rig.Dir, "--env", "PATH="+w.path(), "husk",
		filepath.Join(bin, "husk"), "--config", w.rig.HuskConfig(), "serve")
	return err
}
