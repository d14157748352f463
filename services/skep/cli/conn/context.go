package conn

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"

	"skep.dev/libs/fault"
)

// Local is the context of the machine's own daemon; it exists always and has no file.
const Local = "default"

// Context is a cluster elsewhere and the certificate to reach it with. The file holds a private key: mode 0600.
type Context struct {
	Name        string   `json:"name"`
	Addr        string   `json:"addr"`             // host:port of a manager
	Others      []string `json:"others,omitempty"` // more managers, tried when that one is away
	Description string   `json:"description,omitempty"`
	Cert        string   `json:"cert"` // PEM
	Key         string   `json:"key"`
	CA          string   `json:"ca"`
}

// Encode is the form of a context in a file, the same here and on the way to another machine.
func (c Context) Encode() ([]byte, error) {
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode context %s: %w", c.Name, err)
	}
	return append(b, '\n'), nil
}

// Parse reads what Encode wrote and checks that it can be used.
func Parse(text []byte) (Context, error) {
	var c Context
	if err := json.Unmarshal(text, &c); err != nil {
		return c, fault.Invalid("this is not a context: %v; `skep context issue` and `skep context export` write them", err)
	}
	if c.Addr == "" || c.Key == "" {
		return c, fault.Invalid("this is not a context: it lacks an address or a key; `skep context issue` and `skep context export` write them")
	}
	_, err := c.identity()
	return c, err
}

// Store is the directory of contexts, by default ~/.config/skep.
type Store struct{ Dir string }

// DefaultStore is the caller's own: SKEP_CONFIG_DIR, else XDG_CONFIG_HOME or ~/.config with /skep.
func DefaultStore(getenv func(string) string) Store {
	if d := getenv("SKEP_CONFIG_DIR"); d != "" {
		return Store{d}
	}
	if d := getenv("XDG_CONFIG_HOME"); d != "" {
		return Store{filepath.Join(d, "skep")}
	}
	return Store{filepath.Join(getenv("HOME"), ".config", "skep")}
}

var contextName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.+-]*$`)

func (s Store) path(name string) string { return filepath.Join(s.Dir, "contexts", name+".json") }

func checkName(name string) error {
	if !contextName.MatchString(name) {
		return fault.Usage("context name %q is invalid: names begin with a letter or digit, then letters, digits and _.+-", name)
	}
	return nil
}

// Load reads one context.
func (s Store) Load(name string) (Context, error) {
	var c Context
	if err := checkName(name); err != nil {
		return c, err
	}
	b, err := os.ReadFile(s.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return c, fault.NotFound("context %q does not exist; `skep context ls` lists those that do", name)
	}
	if err != nil {
		return c, fmt.Errorf("read context %s: %w", name, err)
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fmt.Errorf("read context %s: %w", name, err)
	}
	c.Name = name
	return c, nil
}

// Create writes a new context; one of that name must not exist.
func (s Store) Create(c Context) error {
	if err := checkName(c.Name); err != nil {
		return err
	}
	if c.Name == Local {
		return fault.Invalid("context %q stands for the daemon of this machine and cannot be created", Local)
	}
	if err := os.MkdirAll(filepath.Dir(s.path(c.Name)), 0o700); err != nil {
		return fmt.Errorf("create context %s: %w", c.Name, err)
	}
	b, err := c.Encode()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(s.path(c.Name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fault.Conflict("context %q exists already; remove it with `skep context rm %s`", c.Name, c.Name)
	}
	if err != nil {
		return fmt.Errorf("create context %s: %w", c.Name, err)
	}
	_, err = f.Write(b)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = os.Remove(s.path(c.Name))
		return fmt.Errorf("write context %s: %w", c.Name, err)
	}
	return nil
}

// Remove deletes a context.
func (s Store) Remove(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if name == Local {
		return fault.Invalid("context %q cannot be removed", Local)
	}
	err := os.Remove(s.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return fault.NotFound("context %q does not exist", name)
	}
	if err != nil {
		return fmt.Errorf("remove context %s: %w", name, err)
	}
	return nil
}

// List names every context with a file.
func (s Store) List() ([]string, error) {
	ents, err := os.ReadDir(filepath.Join(s.Dir, "contexts"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list contexts: %w", err)
	}
	var out []string
	for _, e := range ents {
		if n, ok := strings.CutSuffix(e.Name(), ".json"); ok && !e.IsDir() {
			out = append(out, n)
		}
	}
	sort.Strings(out)
	return out, nil
}

// Current is the context chosen with `skep context use`, or Local.
func (s Store) Current() string {
	b, err := os.ReadFile(filepath.Join(s.Dir, "current"))
	if name := strings.TrimSpace(string(b)); err == nil && name != "" {
		return name
	}
	return Local
}

// Use makes a context the current one.
func (s Store) Use(name string) error {
	if name != Local {
		if _, err := s.Load(name); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return fmt.Errorf("use context %s: %w", name, err)
	}
	if err := os.WriteFile(filepath.Join(s.Dir, "current"), []byte(name+"\n"), 0o600); err != nil {
		return fmt.Errorf("use context %s: %w", name, err)
	}
	return nil
}
