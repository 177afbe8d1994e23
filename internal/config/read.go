package config

import (
	"errors"
	"io/fs"
	"os"
	"reflect"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/husk-cri/husk/internal/crioconf"
	"github.com/husk-cri/husk/pkg/errdefs"
)

// maxDropIns bounds what is read, against a directory that something fills. Each file
// is bounded by [crioconf.ReadFile].
const maxDropIns = 64

// Problem is one thing that is wrong with a configuration: file, key, what, remedy.
type Problem = crioconf.Problem

// Loaded is a configuration with where it comes from.
type Loaded struct {
	Config Config
	// Files are those that were read, in the order they were merged.
	Files []string
	// Origins says which file set a key last: "listen", "handlers.kata.pin_digest".
	// A key that is not there has its default.
	Origins map[string]string
	// Problems is what is wrong with the files. With any, Config is not to be used.
	Problems []Problem
	// Partial: a file could not be read to its end, so that more is unknown than the
	// problems say.
	Partial bool
}

// Load reads path and the drop-ins path.d/*.toml. A missing file is an empty one when
// path is [DefaultFile]. Whatever is wrong is an error, keys that mean nothing too: a
// misspelt limit must not be a missing one. The error is of kind InvalidArgument and
// errors.As finds the first [Problem] in it.
func Load(path string) (Config, error) {
	l := Read(path)
	if err := l.Err(); err != nil {
		return Config{}, err
	}
	return l.Config, nil
}

// Err returns the problems as one error, nil if there are none.
func (l Loaded) Err() error {
	if len(l.Problems) == 0 {
		return nil
	}
	all := make([]error, 0, len(l.Problems))
	for _, p := range l.Problems {
		all = append(all, p)
	}
	return errdefs.New(errdefs.InvalidArgument, "read configuration", errors.Join(all...))
}

// Read is [Load] that goes on after a problem, to find them all.
func Read(path string) Loaded {
	l := Loaded{Origins: map[string]string{}}
	if _, err := os.Stat(path); path != DefaultFile || !errors.Is(err, fs.ErrNotExist) {
		l.merge(path)
	}
	files, err := crioconf.ReadDir(path+DropInSuffix, ".toml", maxDropIns)
	if err != nil {
		l.Partial = true
		l.problem(Problem{File: path + DropInSuffix, What: err.Error(), Remedy: "remove what is not Husk's", Fatal: true})
	}
	for _, name := range files {
		l.merge(name)
	}
	l.Config.defaults()
	l.validate(path)
	return l
}

func (l *Loaded) problem(p Problem) { l.Problems = append(l.Problems, p) }

// merge reads one file over what is there: a key replaces the key, in handlers too.
func (l *Loaded) merge(path string) {
	data, err := crioconf.ReadFile(path)
	if err != nil {
		l.Partial = true
		l.problem(crioconf.ReadProblem(path, err))
		return
	}
	l.Files = append(l.Files, path)
	handlers := l.Config.Handlers
	l.Config.Handlers = nil // the decoder replaces what a map holds
	meta, err := toml.Decode(string(data), &l.Config)
	read := l.Config.Handlers
	l.Config.Handlers = handlers
	if err != nil {
		l.Partial = true
		l.problem(crioconf.ParseProblem(path, err))
		return
	}
	unknown := "\x00" // below which keys are not named one by one
	for _, key := range meta.Keys() {
		name := strings.Join(key, ".")
		if strings.HasPrefix(name, unknown+".") {
			continue
		}
		if !known(key) {
			unknown = name
			l.problem(Problem{
				File: path, Key: name, What: "unknown key",
				Remedy: "mend its name (husk config prints the keys there are), or remove it", Fatal: true,
			})
			continue
		}
		l.Origins[name] = path
		if len(key) == 2 && key[0] == handlersKey {
			l.handler(key[1], read[key[1]], meta)
		}
	}
}

// known reports whether key means something. The decoder ignores case; Husk does not,
// so that each key has one spelling.
func known(key []string) bool {
	switch {
	case key[0] != handlersKey:
		return len(key) == 1 && hasField(key[0])
	case len(key) > 2:
		return len(key) == 3 && hasField(handlersKey+".NAME."+key[2])
	default:
		return true
	}
}

// handler takes over the fields of [handlers.NAME] that a file sets.
func (l *Loaded) handler(name string, read Handler, meta toml.MetaData) {
	if l.Config.Handlers == nil {
		l.Config.Handlers = map[string]Handler{}
	}
	merged := l.Config.Handlers[name]
	from, to := reflect.ValueOf(read), reflect.ValueOf(&merged).Elem()
	for i := range to.NumField() {
		if meta.IsDefined(handlersKey, name, to.Type().Field(i).Tag.Get("toml")) {
			to.Field(i).Set(from.Field(i))
		}
	}
	l.Config.Handlers[name] = merged
}
