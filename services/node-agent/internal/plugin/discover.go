package plugin

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	maxPlugins  = 64       // of one node; more are not looked at
	maxSpecFile = 16 << 10 // bytes of a .spec or .json file
)

// Dirs are the folders in which plug-ins make themselves known, in the order of who wins.
type Dirs struct {
	Sockets []string // NAME.sock and NAME/NAME.sock
	Specs   []string // NAME.spec, NAME.json, and the same below NAME/
}

// DefaultDirs are Docker's.
func DefaultDirs() Dirs {
	return Dirs{Sockets: []string{"/run/docker/plugins"}, Specs: []string{"/etc/docker/plugins", "/usr/lib/docker/plugins"}}
}

// ParseDirs reads a list of folders with commas between them: sockets and spec files are looked for in each.
func ParseDirs(list string) (Dirs, error) {
	if list == "" {
		return DefaultDirs(), nil
	}
	var d Dirs
	for dir := range strings.SplitSeq(list, ",") {
		if !filepath.IsAbs(dir) {
			return Dirs{}, fmt.Errorf("folder of volume plug-ins %q: give absolute paths with commas between them", dir)
		}
		d.Sockets = append(d.Sockets, filepath.Clean(dir))
	}
	d.Specs = d.Sockets
	return d, nil
}

// validPlugin are the names a plug-in can have: it is part of a file's name, and of a folder's in the record of mounts.
var validPlugin = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

// plainName is the name without the tag that Docker gives those it manages itself.
func plainName(name string) string { return strings.TrimSuffix(name, ":latest") }

// endpoint is where a plug-in answers. Two that are equal are the same process's, as far as files tell.
type endpoint struct {
	name    string
	file    string // what made it known
	network string // unix or tcp
	address string
	tls     tlsFiles
	version string // changes when the file is made anew, as a plug-in does that starts again
	bad     string // why it is not used, "" = it is
}

// tlsFiles is the TLSConfig of a .json file.
type tlsFiles struct {
	on                 bool
	InsecureSkipVerify bool
	CAFile             string
	CertFile           string
	KeyFile            string
}

// scan returns every plug-in there is, by name, and how many were left out because they are too many.
func (d Dirs) scan() (found map[string]endpoint, more int) {
	found = map[string]endpoint{}
	look := func(dirs []string, exts ...string) {
		for _, dir := range dirs {
			for _, name := range names(dir, exts) {
				if _, ok := found[name]; ok {
					continue
				}
				e, ok := find(dir, name, exts)
				switch {
				case !ok:
				case len(found) >= maxPlugins:
					more++
				default:
					found[name] = e
				}
			}
		}
	}
	look(d.Sockets, ".sock")
	look(d.Specs, ".spec", ".json")
	return found, more
}

// names are what the files of a folder are called, and its folders.
func names(dir string, exts []string) []string {
	f, err := os.Open(dir)
	if err != nil {
		return nil // most nodes have none of the folders
	}
	defer f.Close()
	entries, _ := f.ReadDir(16 * maxPlugins) // what was read is used; the rest is found when there is less
	var out []string
	for _, e := range entries {
		name := e.Name()
		if ext := filepath.Ext(name); !e.IsDir() {
			if !slices.Contains(exts, ext) {
				continue
			}
			name = strings.TrimSuffix(name, ext)
		}
		if validPlugin.MatchString(name) && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// find looks for one plug-in in one folder.
func find(dir, name string, exts []string) (endpoint, bool) {
	for _, ext := range exts {
		for _, file := range []string{filepath.Join(dir, name+ext), filepath.Join(dir, name, name+ext)} {
			st, err := os.Lstat(file)
			if err != nil {
				continue
			}
			e := endpoint{name: name, file: file, version: version(st)}
			if err := e.read(ext); err != nil {
				e.bad = err.Error()
			}
			return e, true
		}
	}
	return endpoint{}, false
}

// version tells one making of a file from the next.
func version(st fs.FileInfo) string {
	sys := st.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%d:%d:%d", sys.Dev, sys.Ino, st.ModTime().UnixNano())
}

// read fills in where the plug-in answers, and refuses what a stranger could have put there.
func (e *endpoint) read(ext string) error {
	if ext == ".sock" {
		e.network, e.address = "unix", e.file
		return checkSocket(e.file)
	}
	if err := checkOwner(e.file, fs.FileMode.IsRegular, "a file"); err != nil {
		return err
	}
	b, err := readSmall(e.file)
	if err != nil {
		return err
	}
	addr := strings.TrimSpace(string(b))
	if ext == ".json" {
		var j struct {
			Addr      string
			TLSConfig *tlsFiles
		}
		if err := json.Unmarshal(b, &j); err != nil {
			return fmt.Errorf("%s is not the JSON of a plug-in: %w", e.file, err)
		}
		addr = j.Addr
		if j.TLSConfig != nil {
			e.tls = *j.TLSConfig
			e.tls.on = true
		}
	}
	return e.parse(addr)
}

// parse takes unix:///path and tcp://host:port; https and http are taken for tcp with and without TLS.
func (e *endpoint) parse(addr string) error {
	u, err := url.Parse(addr)
	if err != nil || strings.ContainsAny(addr, " \n") {
		return fmt.Errorf("%s has no address such as unix:///run/x.sock or tcp://localhost:8080 but %q", e.file, cut(addr))
	}
	switch u.Scheme {
	case "unix":
		e.network, e.address = "unix", u.Path
		if u.Host != "" || !filepath.IsAbs(u.Path) || filepath.Clean(u.Path) != u.Path {
			return fmt.Errorf("%s names the socket %q: give it as unix:///absolute/path", e.file, cut(addr))
		}
		if err := checkSocket(u.Path); err != nil {
			return err
		}
		if st, err := os.Lstat(u.Path); err == nil {
			e.version += "/" + version(st)
		}
		return nil
	case "tcp", "http", "https":
		if u.Port() == "" || u.Hostname() == "" || u.Path != "" && u.Path != "/" || u.User != nil {
			return fmt.Errorf("%s names the address %q: give it as tcp://host:port", e.file, cut(addr))
		}
		e.network, e.address = "tcp", u.Host
		e.tls.on = e.tls.on || u.Scheme == "https"
		if !e.tls.on && !loopback(u.Hostname()) {
			return fmt.Errorf("%s names %s, on another machine and without TLS: whoever is on the way could answer in its place; use a .json file with a TLSConfig", e.file, cut(addr))
		}
		return nil
	}
	return fmt.Errorf("%s names the address %q: only unix:// and tcp:// are known", e.file, cut(addr))
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback() || host == "localhost"
}

// checkSocket refuses a socket behind which somebody else than the system's administrator may answer: where a plug-in
// says a volume is, there a container reads and writes.
func checkSocket(path string) error {
	if err := checkOwner(path, func(m fs.FileMode) bool { return m.Type() == fs.ModeSocket }, "a socket"); err != nil {
		return err
	}
	if len(path) >= len(unix.RawSockaddrUnix{}.Path) {
		return fmt.Errorf("the path of socket %s is longer than the kernel takes", path)
	}
	return nil
}

// checkOwner wants a file of the kind, not a link, that nobody but root and this process's user can put another in place of.
func checkOwner(path string, is func(fs.FileMode) bool, kind string) error {
	st, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("look at %s: %w", path, err)
	}
	if !is(st.Mode()) {
		return fmt.Errorf("%s is not %s but %s", path, kind, st.Mode().Type())
	}
	if uid, ok := ours(st); !ok {
		return fmt.Errorf("%s belongs to user %d: a plug-in's files are root's", path, uid)
	}
	if st.Mode().IsRegular() && st.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s can be written by others than its owner (mode %o)", path, st.Mode().Perm())
	}
	dir := filepath.Dir(path)
	if st, err = os.Stat(dir); err != nil {
		return fmt.Errorf("look at %s: %w", dir, err)
	}
	if uid, ok := ours(st); !ok || st.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("folder %s (user %d, mode %o) lets others than root put a plug-in there", dir, uid, st.Mode().Perm())
	}
	return nil
}

// ours tells whether root or this process's own user owns it.
func ours(st fs.FileInfo) (uint32, bool) {
	uid := st.Sys().(*syscall.Stat_t).Uid
	return uid, uid == 0 || int(uid) == os.Geteuid()
}

func readSmall(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err == nil && st.Size() > maxSpecFile {
		err = fmt.Errorf("it has %d bytes, at most %d are read", st.Size(), maxSpecFile)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return os.ReadFile(path)
}

// unsent tells whether a call failed before the plug-in can have heard of it.
func unsent(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial" || errors.As(err, new(*tls.CertificateVerificationError))
}
