package login

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"skep.dev/libs/atomicfile"
)

// File is Docker's config.json.
type File struct {
	path    string
	keys    map[string]json.RawMessage // all of it
	auths   map[string]json.RawMessage
	helpers map[string]string // by registry
	store   string            // helper of all others, "" = the file itself
}

// Open reads the file; there may be none yet.
func Open(path string) (*File, error) {
	f := &File{path: path, keys: map[string]json.RawMessage{}, auths: map[string]json.RawMessage{}}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read registry credentials: %w", err)
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return f, nil
	}
	bad := func(err error) (*File, error) {
		return nil, fmt.Errorf("read registry credentials in %s: %w; it is left as it is", path, err)
	}
	if err := json.Unmarshal(b, &f.keys); err != nil {
		return bad(err)
	}
	for key, to := range map[string]any{"auths": &f.auths, "credHelpers": &f.helpers, "credsStore": &f.store} {
		if raw, ok := f.keys[key]; ok {
			if err := json.Unmarshal(raw, to); err != nil {
				return bad(fmt.Errorf("%s is not what it should be", key)) // err could quote a password
			}
		}
	}
	if f.keys == nil {
		f.keys = map[string]json.RawMessage{} // the file says null
	}
	if f.auths == nil {
		f.auths = map[string]json.RawMessage{}
	}
	return f, nil
}

// Hosts are the registries it has something of.
func (f *File) Hosts() []string {
	have := map[string]bool{}
	for k := range f.auths {
		have[hostOf(k)] = true
	}
	for k := range f.helpers {
		have[hostOf(k)] = true
	}
	return slices.Sorted(maps.Keys(have))
}

// kept is what the file itself has of a host. Of several spellings Docker's own comes first.
func (f *File) kept(host string) (Credentials, error) {
	keys := slices.DeleteFunc(slices.Sorted(maps.Keys(f.auths)), func(k string) bool { return hostOf(k) != host })
	slices.SortStableFunc(keys, func(a, b string) int {
		switch keyOf(host) {
		case a:
			return -1
		case b:
			return 1
		}
		return 0
	})
	for _, k := range keys {
		var e entry
		if json.Unmarshal(f.auths[k], &e) != nil { // whose error could quote a password
			return Credentials{}, fmt.Errorf("read the credentials for %s in %s: they are not what Docker writes", k, f.path)
		}
		c, err := e.credentials()
		if err != nil {
			return Credentials{}, fmt.Errorf("read the credentials for %s in %s: %w", k, f.path, err)
		}
		if !c.Empty() {
			return c, nil
		}
	}
	return Credentials{}, nil
}

// set replaces what the file has of a host, under every spelling of it. Empty credentials leave Docker's sign that a
// helper has them.
func (f *File) set(host string, c Credentials) error {
	f.remove(host)
	e := map[string]string{}
	if !c.Empty() {
		e["auth"] = base64.StdEncoding.EncodeToString([]byte(c.Username + ":" + c.Password))
		if c.IdentityToken != "" {
			e["identitytoken"] = c.IdentityToken
		}
	}
	raw, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode registry credentials: %w", err)
	}
	f.auths[keyOf(host)] = raw
	return nil
}

// remove reports whether there was anything.
func (f *File) remove(host string) bool {
	n := len(f.auths)
	maps.DeleteFunc(f.auths, func(k string, _ json.RawMessage) bool { return hostOf(k) == host })
	return len(f.auths) != n
}

// save writes the file for its owner alone. A link is followed: what it leads to is replaced, and the link stays.
func (f *File) save() error {
	raw, err := json.Marshal(f.auths)
	if err != nil {
		return fmt.Errorf("encode registry credentials: %w", err)
	}
	f.keys["auths"] = raw
	b, err := json.MarshalIndent(f.keys, "", "\t")
	if err != nil {
		return fmt.Errorf("encode registry credentials: %w", err)
	}
	path := f.path
	if to, err := filepath.EvalSymlinks(path); err == nil {
		path = to
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("write registry credentials: %w", err)
	} else if to, err := os.Readlink(path); err == nil {
		return fmt.Errorf("write registry credentials: %s is a link to %s, which is not there", path, to)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write registry credentials: %w", err)
	}
	was, statErr := os.Stat(path)
	if err := atomicfile.WriteSync(path, append(b, '\n')); err != nil {
		return fmt.Errorf("write registry credentials: %w", err)
	}
	// Root who writes a user's file, as sudo does, leaves it the user's.
	if statErr == nil {
		if st, ok := was.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
			if err := os.Lchown(path, int(st.Uid), int(st.Gid)); err != nil {
				return fmt.Errorf("give %s back to its owner: %w", path, err)
			}
		}
	}
	return nil
}
