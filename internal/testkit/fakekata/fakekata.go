// Package fakekata is a shim v2 that does with a container what Kata's shims and its agent
// do before a virtual machine comes into it (PROTOCOLS 2 to 4), and writes down what reached
// it. It has no guest: nothing is pulled, and a container's process is one of its own that
// prints as whom, where and with what it was started, and sleeps.
//
// What it takes from Kata: the reference is an annotation, whatever the volume says; a pod's
// own container runs Kata's pause; args, env, cwd and user are the spec's alone, and the
// user is its numbers; an image's configuration is never seen.
package fakekata

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/containerd/containerd/namespaces"
	containerdshim "github.com/containerd/containerd/runtime/v2/shim"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
)

// BinaryName is what CRI-O wants the binary to be called.
const BinaryName = "containerd-shim-fakekata-v2"

// Kata's two shims, which refuse different things.
const (
	FlavourGo   = "go"
	FlavourRust = "rust"
)

// Config is the TOML file that runtime_config_path of the handler names.
type Config struct {
	// Record is the file that is told what happens, a JSON line for each [Event].
	Record string `toml:"record"`
	// Flavour is FlavourGo or FlavourRust. Zero: FlavourGo.
	Flavour string `toml:"flavour"`
}

func loadConfig(path string) (Config, error) {
	var cfg Config
	if path == "" {
		return cfg, errors.New("runtime_config_path names no configuration")
	}
	meta, err := toml.DecodeFile(path, &cfg)
	if err != nil {
		return cfg, err
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		return cfg, fmt.Errorf("%s: unknown key %s", path, unknown[0])
	}
	if cfg.Flavour == "" {
		cfg.Flavour = FlavourGo
	}
	if cfg.Flavour != FlavourGo && cfg.Flavour != FlavourRust {
		return cfg, fmt.Errorf("%s: flavour %q", path, cfg.Flavour)
	}
	if !filepath.IsAbs(cfg.Record) {
		return cfg, fmt.Errorf("%s: record %q is no absolute path", path, cfg.Record)
	}
	return cfg, nil
}

// Storage is what the agent is told of a root file system.
type Storage struct {
	Driver        string   `json:"driver"`
	DriverOptions []string `json:"driver_options"`
	Source        string   `json:"source"`
	FSType        string   `json:"fstype"`
	MountPoint    string   `json:"mount_point"`
}

// Process is what the agent runs. It has numbers only.
type Process struct {
	Args     []string `json:"args"`
	Env      []string `json:"env"`
	Cwd      string   `json:"cwd"`
	UID      uint32   `json:"uid"`
	GID      uint32   `json:"gid"`
	Groups   []uint32 `json:"groups"`
	Terminal bool     `json:"terminal"`
}

// Event is a line of the record. Create and refuse have all that reached the shim.
type Event struct {
	// Event is create, refuse, start, exec, kill, exit or delete.
	Event string    `json:"event"`
	At    time.Time `json:"at"`
	ID    string    `json:"id"`
	// Sandbox is the ID of the pod that the shim runs.
	Sandbox string `json:"sandbox"`
	// Type is sandbox, container or single (made by no CRI runtime).
	Type string `json:"type,omitempty"`
	// Error says why it was refused.
	Error string `json:"error,omitempty"`
	// Mounts are the root file system's of the request, as they came.
	Mounts []Mount `json:"rootfs,omitempty"`
	// Spec is config.json, as it came.
	Spec *rspec.Spec `json:"spec,omitempty"`
	// Storage and Process are what the agent gets.
	Storage *Storage `json:"storage,omitempty"`
	Process *Process `json:"process,omitempty"`
	ExecID  string   `json:"exec_id,omitempty"`
	Signal  uint32   `json:"signal,omitempty"`
	Status  uint32   `json:"status,omitempty"`
}

// Mount is a mount of a CreateTaskRequest.
type Mount struct {
	Type    string   `json:"type"`
	Source  string   `json:"source"`
	Options []string `json:"options"`
}

const recordMode = 0o600

// record appends events to a file. The shims of all pods append to the same one: a line is
// one write. Its zero value writes nowhere.
type record struct {
	mu   sync.Mutex
	path string
}

func (r *record) use(path string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.path = path
}

func (r *record) add(e Event) (err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.path == "" {
		return nil
	}
	e.At = time.Now().UTC()
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(r.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, recordMode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	_, err = f.Write(append(line, '\n'))
	return err
}

// Main runs whichever process the arguments ask for, and returns its exit status.
func Main(ctx context.Context, args []string) int {
	code, err := run(ctx, args)
	if err != nil {
		_, _ = fmt.Fprintf(os.Stderr, "%s: %v\n", BinaryName, err) // there is nowhere else to say it
		return 1
	}
	return code
}

func run(ctx context.Context, args []string) (int, error) {
	command := ""
	if len(args) > 1 {
		command = args[1]
	}
	switch command {
	case "--version", "-v": // CRI-O asks each time it starts
		_, err := fmt.Println(BinaryName, "for tests")
		return 0, err
	case "features": // CRI-O takes a failure for none
		return 0, errors.New("a virtual machine has no features to tell")
	case processCommand, execCommand:
		return runProcess(os.Stdin, os.Stdout, command == execCommand)
	case serveCommand:
		return 0, serve(namespaces.WithNamespace(ctx, namespaces.Default), args)
	}
	containerdshim.RunManager(ctx, Manager{}, func(c *containerdshim.Config) { c.NoReaper = true })
	return 0, nil
}
