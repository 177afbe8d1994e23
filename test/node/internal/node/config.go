package node

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"golang.org/x/crypto/bcrypt"
)

//go:embed templates
var templateFiles embed.FS

// templates are the configuration files. A field that the Node does not have is an error.
var templates = template.Must(template.New("").Option("missingkey=error").ParseFS(templateFiles, "templates/*"))

// maxDir bounds the folder's path: conmon and CRI-O make unix sockets below it, whose paths the kernel limits to
// 107 bytes.
const maxDir = 32

const acceptAnything = `{"default":[{"type":"insecureAcceptAnything"}]}` + "\n"

// folders are made at the start. CRI-O does not make all of those that it is configured with.
var folders = []string{
	"home", "tmp", "log", "log/pods", "run", "conf/cni", "conf/crio.conf.d", "conf/policies", "conf/registries.conf.d",
	"crio/hooks", "crio/cdi", "crio/exits", "crio/attach", "crio/ns", "registry", "auth-registry",
}

// plan fills in every path of the node below its folder.
func (n *Node) plan(socketName string) {
	n.LogDir = n.path("log")
	n.FrontSocket = n.path("run", "crio.sock")
	n.OCIHandlers = []string{"runc", "runc2"}
	n.CRIO = CRIO{
		Socket:         n.path("run", socketName),
		Config:         n.path("conf", "crio.conf"),
		ConfigDir:      n.path("conf", "crio.conf.d"),
		Root:           n.path("crio", "root"),
		RunRoot:        n.path("crio", "run"),
		StorageConf:    n.path("conf", "storage.conf"),
		RegistriesConf: n.path("conf", "registries.conf"),
		Policy:         n.path("conf", "policy.json"),
	}
	n.Daemons = map[string]Daemon{}
}

// crioEnv is CRI-O's environment: what it cannot be told in crio.conf.
func (n *Node) crioEnv() []string {
	return []string{
		"CONTAINERS_STORAGE_CONF=" + n.CRIO.StorageConf,
		"CONTAINER_REGISTRIES_CONF=" + n.CRIO.RegistriesConf,
		"CONTAINER_REGISTRIES_CONF_DIR=" + n.path("conf", "registries.conf.d"),
	}
}

func (n *Node) makeFolders() error {
	for _, f := range folders {
		if err := os.MkdirAll(n.path(f), 0o755); err != nil {
			return fmt.Errorf("make folder: %w", err)
		}
	}
	return nil
}

// writeConfig writes every configuration file of the node.
func (n *Node) writeConfig(dropIns []string) error {
	registries := []*Registry{&n.Registry}
	if n.AuthRegistry != nil {
		registries = append(registries, n.AuthRegistry)
	}
	for _, r := range registries {
		if err := render("registry.yml", r.Config, r); err != nil {
			return err
		}
	}
	for name, path := range map[string]string{
		"crio.conf":       n.CRIO.Config,
		"storage.conf":    n.CRIO.StorageConf,
		"registries.conf": n.CRIO.RegistriesConf,
		"cni.conflist":    n.path("conf", "cni", "10-"+n.Network.Bridge+".conflist"),
	} {
		if err := render(name, path, n); err != nil {
			return err
		}
	}
	if err := os.WriteFile(n.CRIO.Policy, []byte(acceptAnything), 0o644); err != nil {
		return fmt.Errorf("write policy: %w", err)
	}
	for _, d := range dropIns {
		b, err := os.ReadFile(d)
		if err != nil {
			return fmt.Errorf("read drop-in: %w", err)
		}
		if err := os.WriteFile(filepath.Join(n.CRIO.ConfigDir, filepath.Base(d)), b, 0o644); err != nil {
			return fmt.Errorf("write drop-in: %w", err)
		}
	}
	return nil
}

func render(name, path string, data any) error {
	var b bytes.Buffer
	if err := templates.ExecuteTemplate(&b, name, data); err != nil {
		return fmt.Errorf("render %s: %w", name, err)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// writeHtpasswd makes the password file of the registry with authentication from "user:password".
func writeHtpasswd(path, credentials string) error {
	user, password, ok := strings.Cut(credentials, ":")
	if !ok || user == "" || password == "" {
		return errors.New("credentials are not user:password")
	}
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost) // a test's password: quick beats strong
	if err != nil {
		return fmt.Errorf("hash password: %w", err)
	}
	if err := os.WriteFile(path, fmt.Appendf(nil, "%s:%s\n", user, hash), 0o600); err != nil {
		return fmt.Errorf("write htpasswd: %w", err)
	}
	return nil
}
