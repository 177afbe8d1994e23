// Command fakeregistry serves a registry of the test kit to a node under test. It
// prints the registry's address when it answers, and ends on SIGTERM.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/husk-cri/husk/internal/testkit/fakeregistry"
	"github.com/husk-cri/husk/test/internal/rig"
)

// serveTimeout bounds how long a registry outlives the test that forgot it.
const serveTimeout = 30 * time.Minute

func main() {
	rig.Main("fakeregistry", serveTimeout, func(ctx context.Context, args []string) error { return run(ctx, args, os.Stdout) })
}

// settings are the command line.
type settings struct {
	fakeregistry.Options
	log, certs string
	mutual     bool
	faults     []faultFlag
	faultFile  string
}

func parse(args []string) (settings, error) {
	var s settings
	flags := flag.NewFlagSet("fakeregistry", flag.ContinueOnError)
	flags.StringVar(&s.Listen, "listen", "", "`address` (default: a free port of 127.0.0.1)")
	flags.StringVar(&s.log, "log", "", "append every request to this `file`, as JSON lines")
	flags.StringVar(&s.certs, "certs-d", "", "speak TLS, and write the CA into this certs.d `directory`")
	flags.BoolVar(&s.mutual, "client-cert", false, "want a client certificate, and write it there too")
	flags.BoolVar(&s.Bearer, "bearer", false, "want tokens from the token service")
	flags.StringVar(&s.RegistryToken, "registry-token", "", "a `token` that is taken from anybody")
	flags.DurationVar(&s.TokenLife, "token-life", 0, "how long tokens are valid (default: for ever)")
	flags.Func("user", "`name:password[=repository,...]` who may see these repositories, else all", func(v string) error {
		u, err := parseUser(v)
		s.Users = append(s.Users, u)
		return err
	})
	flags.Func("identity-token", "the last user's identity `token`", func(v string) error {
		if len(s.Users) == 0 {
			return errors.New("give --user first")
		}
		s.Users[len(s.Users)-1].IdentityToken = v
		return nil
	})
	flags.Func("public", "`repository` that needs no credentials", func(v string) error {
		s.Public = append(s.Public, v)
		return nil
	})
	flags.Func("fault", "`match[:name]=fault[:value][*times]`, see faults.go", func(v string) error {
		f, err := parseFault(v)
		s.faults = append(s.faults, f)
		return err
	})
	flags.StringVar(&s.faultFile, "faults", "", "further faults, one a line, from this `file`, which may change at any time")
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	if s.mutual && s.certs == "" {
		return s, errors.New("--client-cert needs --certs-d")
	}
	return s, nil
}

func parseUser(v string) (fakeregistry.User, error) {
	login, repositories, limited := strings.Cut(v, "=")
	name, password, ok := strings.Cut(login, ":")
	if !ok || name == "" || password == "" {
		return fakeregistry.User{}, errors.New("want name:password[=repository,...]")
	}
	u := fakeregistry.User{Name: name, Password: password}
	if limited {
		u.Repositories = strings.Split(repositories, ",")
	}
	return u, nil
}

func run(ctx context.Context, args []string, out io.Writer) error {
	s, err := parse(args)
	if err != nil {
		return err
	}
	return fakeregistry.Run(ctx, func(tb fakeregistry.TB) error {
		if s.log != "" {
			file, err := os.OpenFile(filepath.Clean(s.log), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
			if err != nil {
				return err
			}
			tb.Cleanup(func() { _ = file.Close() })
			s.Log = logTo(file)
		}
		if s.certs != "" {
			s.CA = fakeregistry.NewCA(tb)
		}
		if s.mutual {
			s.ClientCA = fakeregistry.NewCA(tb)
		}
		r := fakeregistry.New(tb, s.Options)
		if s.certs != "" {
			s.CA.WriteCertsD(tb, s.certs, r.Host(), s.ClientCA, "node")
		}
		for _, f := range s.faults {
			r.On(f.match, f.fault)
		}
		if s.faultFile != "" {
			file := &faultFile{path: filepath.Clean(s.faultFile)}
			r.On(file.matches, file.serve)
		}
		if _, err := fmt.Fprintln(out, r.Host()); err != nil {
			return err
		}
		<-ctx.Done()
		return nil
	})
}

// logTo writes requests as JSON lines with the keys of testnode's access log, and
// who asked.
func logTo(w io.Writer) func(fakeregistry.Request) {
	var mu sync.Mutex
	return func(q fakeregistry.Request) {
		line, err := json.Marshal(map[string]any{
			"method": q.Method, "path": q.Path, "remote": q.Remote, "status": q.Status, "bytes": q.Bytes,
			"host": q.Host, "conn": q.Conn, "scheme": q.Scheme, "user": q.User, "clientCert": q.ClientCert,
		})
		if err != nil {
			return // strings and numbers always encode
		}
		mu.Lock()
		defer mu.Unlock()
		_, _ = w.Write(append(line, '\n'))
	}
}
