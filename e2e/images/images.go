// Package images builds the container images of the lab and the demo, from programs on this machine and Debian packages:
// no registry, no daemon and no Dockerfile takes part. It writes them as docker-loadable OCI archives or pushes them.
//
// It owns the recipes and the cache of the expensive file systems, those of Debian packages. An image is a function of its inputs: the same
// binaries give the same digest. A missing input is an error that says what to install; nothing is left half written.
package images

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Image is a built image and the name it goes by, as in "whoami:v1".
type Image struct {
	Name string
	v1.Image
}

// Inputs says where the programs inside the images come from.
type Inputs struct {
	Bin     string // the folder of the static programs, from `make build`: whoami, mysql-entrypoint, ...
	Busybox string // a static busybox; "" looks at where Debian's busybox-static puts it
	Cache   string // where the file systems of Debian's packages are kept
	Suite   string // the Debian release they are made of
}

// created is the same for all images, so that the same inputs give the same digest.
var created = v1.Time{Time: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}

// searchPath is the PATH inside the images.
const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// imagesRecipe changes whenever a recipe of this file does.
const imagesRecipe = "2"

// programs of `make build` that images contain.
var programs = []string{"whoami", "mysql-entrypoint", "wordpress-entrypoint", "logspout"}

// recipes in the order they are built. The cheap ones alone are what the demo needs.
var recipes = map[string]func(context.Context, Inputs) (v1.Image, error){
	"busybox:latest":             busybox,
	"couchbase:latest":           couchbase,
	"gliderlabs/logspout:latest": logspout,
	"httpd:latest":               httpd,
	"httpd:2.2.31":               httpdTag("2.2.31"),
	"httpd:2.2.32":               httpdTag("2.2.32"),
	"mysql:latest":               mysql,
	"mysql:5.7":                  mysql,
	"whoami:latest":              whoami("v1"),
	"whoami:v1":                  whoami("v1"),
	"whoami:v2":                  whoami("v2"),
	"whoami:crash":               whoami("crash", "-crash"),
	"whoami:sick":                whoami("sick", "-sick-after=5s"),
	"wordpress:latest":           wordpress,
	"armonly:latest":             armOnly,
}

// Names lists every image that Build knows.
func Names() []string {
	names := make([]string, 0, len(recipes))
	for n := range recipes {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}

// Build makes the named images; no names means all of them.
func Build(ctx context.Context, in Inputs, names ...string) ([]Image, error) {
	if len(names) == 0 {
		names = Names()
	}
	var out []Image
	for _, n := range names {
		recipe, ok := recipes[n]
		if !ok {
			return nil, fmt.Errorf("no recipe for image %q; there are %s", n, strings.Join(Names(), ", "))
		}
		img, err := recipe(ctx, in)
		if err != nil {
			return nil, fmt.Errorf("build image %s: %w", n, err)
		}
		out = append(out, Image{Name: n, Image: img})
	}
	return out, nil
}

// healthcheck is the HEALTHCHECK of the whoami images: quick enough for a test to see it turn.
var healthcheck = &v1.HealthConfig{
	Test:     []string{"CMD", "/bin/whoami", "-probe"},
	Interval: time.Second, Timeout: 3 * time.Second, Retries: 2,
}

func whoami(version string, args ...string) func(context.Context, Inputs) (v1.Image, error) {
	return func(_ context.Context, in Inputs) (v1.Image, error) {
		tree, err := busyboxTree(in)
		if err != nil {
			return nil, err
		}
		if err := tree.program("bin/whoami", in, "whoami"); err != nil {
			return nil, err
		}
		cfg := v1.Config{
			Entrypoint:   append([]string{"/bin/whoami", "-version=" + version}, args...),
			Env:          []string{searchPath},
			ExposedPorts: map[string]struct{}{"80/tcp": {}, "80/udp": {}},
		}
		if version == "sick" {
			cfg.Healthcheck = healthcheck
		}
		return assemble(tree, "amd64", cfg)
	}
}

func busybox(_ context.Context, in Inputs) (v1.Image, error) {
	tree, err := busyboxTree(in)
	if err != nil {
		return nil, err
	}
	return assemble(tree, "amd64", v1.Config{Cmd: []string{"sh"}, Env: []string{searchPath}})
}

// armOnly exists to be refused: it has no variant for the machines of the lab.
func armOnly(context.Context, Inputs) (v1.Image, error) {
	tree := files{}
	tree.put("bin/true", []byte("not for this machine\n"), 0o755)
	return assemble(tree, "arm64", v1.Config{Cmd: []string{"/bin/true"}})
}

func assemble(tree files, arch string, cfg v1.Config) (v1.Image, error) {
	layer, err := tree.layer()
	if err != nil {
		return nil, err
	}
	return withLayers(arch, cfg, layer)
}

// layer is the tree as a layer of an image.
func (f files) layer() (v1.Layer, error) {
	raw, err := f.tar()
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil },
		tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, fmt.Errorf("make the layer: %w", err)
	}
	return layer, nil
}

func withLayers(arch string, cfg v1.Config, layers ...v1.Layer) (v1.Image, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.AppendLayers(img, layers...)
	if err != nil {
		return nil, fmt.Errorf("append the layers: %w", err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	file = file.DeepCopy()
	file.Architecture, file.OS, file.Created, file.Config = arch, "linux", created, cfg
	return mutate.ConfigFile(img, file)
}

// files is a small file system in memory: path → entry.
type files map[string]entry

type entry struct {
	mode    int64
	link    string // a symbolic link to here
	dir     bool
	content []byte
}

func (f files) put(name string, content []byte, mode int64) {
	f[name] = entry{content: content, mode: mode}
}
func (f files) link(name, to string)          { f[name] = entry{link: to, mode: 0o777} }
func (f files) mkdir(name string, mode int64) { f[name] = entry{dir: true, mode: mode} }

func (f files) copy(name, from string, mode int64) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("read the program for /%s: %w", name, err)
	}
	f.put(name, b, mode)
	return nil
}

// program adds one of the programs of `make build`.
func (f files) program(name string, in Inputs, program string) error {
	if err := f.copy(name, filepath.Join(in.Bin, program), 0o755); err != nil {
		return fmt.Errorf("%w; run `make build`", err)
	}
	return nil
}

// parents adds the directories that only their content implies.
func (f files) parents() {
	names := make([]string, 0, len(f))
	for n := range f {
		names = append(names, n)
	}
	for _, name := range names {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if _, ok := f[dir]; !ok {
				f.mkdir(dir, 0o755)
			}
		}
	}
}

// tar writes the tree in a stable order, parents before children.
func (f files) tar() ([]byte, error) {
	f.parents()
	names := make([]string, 0, len(f))
	for n := range f {
		names = append(names, n)
	}
	sort.Strings(names)
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, n := range names {
		e := f[n]
		h := &tar.Header{Name: n, Mode: e.mode, ModTime: created.Time, Format: tar.FormatPAX, Typeflag: tar.TypeReg, Size: int64(len(e.content))}
		switch {
		case e.dir:
			h.Typeflag, h.Name = tar.TypeDir, n+"/"
		case e.link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.link
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("write /%s: %w", n, err)
		}
		if _, err := w.Write(e.content); err != nil {
			return nil, fmt.Errorf("write /%s: %w", n, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// base is what programs expect of any root file system.
func (f files) base() {
	f.put("etc/passwd", []byte("root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"), 0o644)
	f.put("etc/group", []byte("root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n"), 0o644)
	f.put("etc/nsswitch.conf", []byte("hosts: files dns\n"), 0o644)
	for dir, mode := range map[string]int64{"root": 0o700, "tmp": 0o1777, "var/tmp": 0o1777, "run": 0o755, "proc": 0o555, "sys": 0o555, "dev": 0o755, "etc": 0o755} {
		f.mkdir(dir, mode)
	}
}

// account adds a user of the system, with a group of its own.
func (f files) account(name string, id int) {
	for file, line := range map[string]string{
		"etc/passwd": fmt.Sprintf("%s:x:%d:%[2]d::/nonexistent:/bin/false\n", name, id),
		"etc/group":  fmt.Sprintf("%s:x:%d:\n", name, id),
	} {
		e := f[file]
		f.put(file, append(bytes.Clone(e.content), line...), e.mode)
	}
}

var errNoBusybox = errors.New("no static busybox on this machine: apt-get install busybox-static (make tools does)")

// applets asks a busybox for the programs it contains.
func applets(busybox string) ([]string, error) {
	out, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("ask %s for its applets: %w", busybox, err)
	}
	return strings.Fields(string(out)), nil
}

func findBusybox() (string, error) {
	for _, p := range []string{"/bin/busybox", "/usr/bin/busybox"} {
		if _, err := os.Stat(p); err == nil {
			return p, nil
		}
	}
	return "", errNoBusybox
}

func busyboxTree(in Inputs) (files, error) {
	from := in.Busybox
	if from == "" {
		var err error
		if from, err = findBusybox(); err != nil {
			return nil, err
		}
	}
	f := files{}
	f.base()
	if err := f.copy("bin/busybox", from, 0o755); err != nil {
		return nil, err
	}
	names, err := applets(from)
	if err != nil {
		return nil, err
	}
	for _, a := range names {
		if p := filepath.Join("bin", a); p != "bin/busybox" {
			f.link(p, "/bin/busybox")
		}
	}
	return f, nil
}

// Key names the set of images that these inputs give, without building it: it changes when one of them does.
func Key(in Inputs) (string, error) {
	sum := sha256.New()
	bb := in.Busybox
	if bb == "" {
		var err error
		if bb, err = findBusybox(); err != nil {
			return "", err
		}
	}
	read := []string{bb}
	for _, p := range programs {
		read = append(read, filepath.Join(in.Bin, p))
	}
	for _, file := range read {
		f, err := os.Open(file)
		if err != nil {
			return "", fmt.Errorf("read a program for the images: %w; run `make build`", err)
		}
		_, err = io.Copy(sum, f)
		f.Close()
		if err != nil {
			return "", err
		}
	}
	fmt.Fprintln(sum, in.Suite, httpdSystem.recipe, mysqlSystem.recipe, wordpressSystem.recipe, imagesRecipe, Names())
	return hex.EncodeToString(sum.Sum(nil)), nil
}
