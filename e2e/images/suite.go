package images

import (
	"context"
	"debug/elf"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"skep.dev/libs/containerdconf"
)

// SuiteUser is the user that the manager's services run as in their containers: nobody's account on a usual machine.
const SuiteUser = 2377

// certificates is the folder of the roots of Debian's ca-certificates. The machine's own bundle is not taken: it may hold
// roots that are only this machine's business.
const certificates = "/usr/share/ca-certificates/mozilla"

// Release says what the images of the suite are made of.
type Release struct {
	Version, Commit    string // of skep
	Containerd         string // the version of containerd, without a "v"
	Tools              string // the folder with containerd, its shim and runc
	CertificatesFolder string // default: where Debian's ca-certificates puts them
}

// suitePrograms are those of the image skep-suite, each without need of anything else.
var suitePrograms = []string{"skep-bus", "skep-state", "skep-scheduler", "skep-health", "skep-vault", "skep-mesh-controller", "skep-engine"}

// nodeSystem is what the mesh and the agent call: iptables, and mount.nfs for volumes.
var nodeSystem = debian{name: "node", recipe: "1", packages: "iptables,mount,nfs-common,netbase", own: func(files) {},
	drop: []string{"usr/lib/python3", "usr/bin/python3", "usr/lib/x86_64-linux-gnu/perl-base", "usr/lib/x86_64-linux-gnu/libperl", "usr/lib/x86_64-linux-gnu/libsqlite3", "usr/lib/x86_64-linux-gnu/libdb-5", "usr/bin/perl", "usr/share/python3/", "usr/share/debconf/", "usr/share/perl5/", "usr/lib/systemd/", "lib/systemd/", "etc/init.d/", "etc/cron",
		"usr/share/lintian/", "usr/share/bug/", "usr/share/doc-base/", "usr/lib/x86_64-linux-gnu/gconv/", "usr/share/zsh/", "usr/share/pam", "usr/share/menu/", "usr/share/adduser/"}}

// Suite makes the images by which deploy/compose.yaml runs a node: skep-suite, the manager's services and the command line;
// skep-node, the agent and the mesh; skep-containerd, what holds the tasks. The last one is named by containerd's version,
// so that a new version of skep leaves it, and the tasks, alone.
func Suite(ctx context.Context, in Inputs, r Release) ([]Image, error) {
	roots, err := r.roots()
	if err != nil {
		return nil, err
	}
	system, err := nodeSystem.layer(ctx, in)
	if err != nil {
		return nil, err
	}
	base := files{}
	base.base()
	base.account("skep", SuiteUser)
	base.put("etc/ssl/certs/ca-certificates.crt", roots, 0o644)
	for dir, mode := range map[string]int64{"var/lib/skep": 0o700, "run/skep": 0o700} {
		base.mkdir(dir, mode)
	}
	suite, node, runtime := files{}, files{}, files{}
	put := func(tree files, folder string, names ...string) {
		for _, n := range names {
			if err == nil {
				err = tree.copy(path.Join("usr/bin", n), filepath.Join(folder, n), 0o755)
			}
		}
	}
	put(suite, in.Bin, append([]string{"skep"}, suitePrograms...)...)
	for _, n := range append([]string{"skep"}, suitePrograms...) {
		if err == nil {
			err = static(filepath.Join(in.Bin, n))
		}
	}
	put(node, in.Bin, "skep-agent", "skep-mesh", "skep-init")
	for _, name := range []string{"iptables", "ip6tables"} { // Debian's postinst would link them
		node.link(path.Join("usr/sbin", name), "xtables-nft-multi")
	}
	put(runtime, in.Bin, "skep-init")
	put(runtime, r.Tools, "containerd", "containerd-shim-runc-v2", "runc")
	if err != nil {
		return nil, fmt.Errorf("%w; run `make tools build`", err)
	}
	runtime.put("etc/containerd/config.toml", []byte(containerdconf.Text("/var/lib/skep/containerd", "/run/skep")), 0o644)
	var out []Image
	for _, i := range []struct {
		name, tag, title string
		system           []v1.Layer
		tree             files
		user             string
	}{
		{"skep-suite", r.Version, "skep: the services of a manager, and the command line", nil, suite, fmt.Sprintf("%d:%[1]d", SuiteUser)},
		{"skep-node", r.Version, "skep: the agent and the mesh of a node", []v1.Layer{system}, node, ""},
		{"skep-containerd", r.Containerd, "containerd and runc for the tasks of a node of skep", []v1.Layer{system}, runtime, ""},
	} {
		layers := i.system
		for _, tree := range []files{base, i.tree} {
			l, err := tree.layer()
			if err != nil {
				return nil, fmt.Errorf("build image %s: %w", i.name, err)
			}
			layers = append(layers, l)
		}
		img, err := withLayers("amd64", v1.Config{
			Env: []string{searchPath}, User: i.user, WorkingDir: "/",
			Labels: map[string]string{
				"org.opencontainers.image.title":    i.title,
				"org.opencontainers.image.version":  i.tag,
				"org.opencontainers.image.revision": r.Commit,
				"org.opencontainers.image.licenses": "Apache-2.0",
			},
		}, layers...)
		if err != nil {
			return nil, fmt.Errorf("build image %s: %w", i.name, err)
		}
		out = append(out, Image{Name: i.name + ":" + i.tag, Image: img})
	}
	return out, nil
}

// static refuses a program that needs a loader: in an image from nothing there is none, and all that the engine says of it is
// that there is no such file.
func static(program string) error {
	f, err := elf.Open(program)
	if err != nil {
		return fmt.Errorf("look at %s: %w", program, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is not static, and its image has no loader: build it with CGO_ENABLED=0", program)
		}
	}
	return nil
}

// roots is the bundle of the certificate authorities that registries are checked with.
func (r Release) roots() ([]byte, error) {
	folder := r.CertificatesFolder
	if folder == "" {
		folder = certificates
	}
	entries, err := os.ReadDir(folder) // sorted by name
	if err != nil {
		return nil, fmt.Errorf("read the certificate authorities: %w; apt-get install ca-certificates (make tools does)", err)
	}
	var out strings.Builder
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".crt") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(folder, e.Name()))
		if err != nil {
			return nil, fmt.Errorf("read a certificate authority: %w", err)
		}
		out.WriteString(strings.TrimSpace(string(b)) + "\n")
	}
	if out.Len() == 0 {
		return nil, fmt.Errorf("%s holds no certificates: apt-get install --reinstall ca-certificates", folder)
	}
	return []byte(out.String()), nil
}
