package images

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// httpdRecipe changes whenever the httpd image must be made anew; it is part of the cache's file name.
const httpdRecipe = "2"

// httpdConf keeps the paths of the well-known httpd image, so that mounts over its htdocs work.
const httpdConf = `ServerRoot /usr/local/apache2
ServerName localhost
Listen 80
PidFile /usr/local/apache2/logs/httpd.pid
Mutex posixsem
User www-data
Group www-data
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule dir_module /usr/lib/apache2/modules/mod_dir.so
LoadModule mime_module /usr/lib/apache2/modules/mod_mime.so
TypesConfig /usr/local/apache2/conf/mime.types
DocumentRoot /usr/local/apache2/htdocs
DirectoryIndex index.html
StartServers 1
ServerLimit 4
ThreadsPerChild 25
<Directory />
  Require all granted
</Directory>
LogFormat "%h %l %u %t \"%r\" %>s %b" common
CustomLog /proc/self/fd/1 common
ErrorLog /proc/self/fd/2
`

func httpd(ctx context.Context, in Inputs) (v1.Image, error) {
	file, err := httpdLayer(ctx, in)
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromFile(file, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, fmt.Errorf("read the cached file system %s: %w", file, err)
	}
	return withLayer(layer, "amd64", v1.Config{
		Cmd: []string{"httpd-foreground"}, Env: []string{searchPath}, WorkingDir: "/usr/local/apache2",
		ExposedPorts: map[string]struct{}{"80/tcp": {}}, StopSignal: "SIGWINCH",
	})
}

// httpdLayer returns the layer's file, from the cache or made with mmdebstrap of Debian's apache2.
func httpdLayer(ctx context.Context, in Inputs) (string, error) {
	if in.Suite == "" {
		return "", fmt.Errorf("no Debian suite given for httpd")
	}
	out := filepath.Join(in.Cache, "httpd-"+in.Suite+"-"+httpdRecipe+".tar.gz")
	if _, err := os.Stat(out); err == nil {
		return out, nil
	}
	if err := os.MkdirAll(in.Cache, 0o755); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(in.Cache, ".httpd-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	raw := filepath.Join(tmp, "raw.tar")
	cmd := exec.CommandContext(ctx, "mmdebstrap", "--quiet", "--variant=extract", "--include=apache2-bin,curl,dash,coreutils", in.Suite, raw)
	if msg, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("fetch Debian's apache2 with mmdebstrap: %w\n%s", err, msg)
	}
	if err := repackHTTPD(raw, filepath.Join(tmp, "layer.tar")); err != nil {
		return "", fmt.Errorf("repack Debian's apache2: %w", err)
	}
	zip := exec.CommandContext(ctx, "gzip", "-n", "-6", filepath.Join(tmp, "layer.tar"))
	if msg, err := zip.CombinedOutput(); err != nil {
		return "", fmt.Errorf("compress: %w\n%s", err, msg)
	}
	return out, os.Rename(filepath.Join(tmp, "layer.tar.gz"), out)
}

// dropped from the image: half of the packages' size, and nothing a web server reads.
var dropped = []string{"usr/share/doc/", "usr/share/man/", "usr/share/locale/", "usr/share/info/", "usr/share/perl/", "usr/lib/x86_64-linux-gnu/perl",
	"usr/share/i18n/", "usr/share/zoneinfo/", "usr/share/common-licenses/", "var/lib/apt/", "var/cache/", "var/lib/dpkg/", "dev/", "usr/share/bash-completion/"}

func repackHTTPD(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()

	own := files{}
	own.base()
	own.put("usr/local/apache2/conf/httpd.conf", []byte(httpdConf), 0o644)
	own.put("usr/local/apache2/conf/mime.types", []byte("text/html html\ntext/plain txt\ntext/css css\n"), 0o644)
	own.put("usr/local/apache2/htdocs/index.html", []byte("<html><body><h1>It works!</h1></body></html>\n"), 0o644)
	own.put("usr/local/bin/httpd-foreground", []byte("#!/bin/sh\nset -e\nrm -f /usr/local/apache2/logs/httpd.pid\nexec /usr/sbin/apache2 -f /usr/local/apache2/conf/httpd.conf -DFOREGROUND \"$@\"\n"), 0o755)
	own.mkdir("usr/local/apache2/logs", 0o755)
	own.parents()

	r, w := tar.NewReader(in), tar.NewWriter(out)
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		h.Name = strings.TrimPrefix(h.Name, "./")
		name := strings.TrimSuffix(h.Name, "/")
		if _, ours := own[name]; ours || name == "" || droppedPath(h.Name) {
			continue
		}
		if err := w.WriteHeader(h); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
		if _, err := io.Copy(w, r); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
	raw, err := own.tar()
	if err != nil {
		return err
	}
	for r := tar.NewReader(bytes.NewReader(raw)); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(w, r); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return out.Close()
}

func droppedPath(name string) bool {
	for _, d := range dropped {
		if strings.HasPrefix(name, d) {
			return true
		}
	}
	return false
}
