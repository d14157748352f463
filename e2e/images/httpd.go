package images

import (
	"context"
	"fmt"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

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

const httpdForeground = `#!/bin/sh
set -e
rm -f /usr/local/apache2/logs/httpd.pid
exec /usr/sbin/apache2 -f /usr/local/apache2/conf/httpd.conf -DFOREGROUND "$@"
`

var httpdSystem = debian{name: "httpd", recipe: "2", packages: "apache2-bin,curl,dash,coreutils", own: func(f files) {
	f.put("usr/local/apache2/conf/httpd.conf", []byte(httpdConf), 0o644)
	f.put("usr/local/apache2/conf/mime.types", []byte("text/html html\ntext/plain txt\ntext/css css\n"), 0o644)
	f.put("usr/local/apache2/htdocs/index.html", []byte("<html><body><h1>It works!</h1></body></html>\n"), 0o644)
	f.put("usr/local/bin/httpd-foreground", []byte(httpdForeground), 0o755)
	f.mkdir("usr/local/apache2/logs", 0o755)
}}

func httpd(ctx context.Context, in Inputs) (v1.Image, error) {
	return httpdWith(ctx, in, "80/tcp", nil)
}

// httpdTag stands for an old release of httpd in the tutorial: Debian has one release only, so this is the same one with a page
// that tells the tags apart.
func httpdTag(tag string) func(context.Context, Inputs) (v1.Image, error) {
	return func(ctx context.Context, in Inputs) (v1.Image, error) {
		return httpdWith(ctx, in, "80/tcp", files{"usr/local/apache2/htdocs/index.html": {
			content: fmt.Appendf(nil, "<html><body><h1>It works!</h1><p>httpd:%s</p></body></html>\n", tag), mode: 0o644}})
	}
}

// couchbase stands for the database of the tutorial's chapter on health, of which the tutorial uses one page: 8091/pools.
func couchbase(ctx context.Context, in Inputs) (v1.Image, error) {
	return httpdWith(ctx, in, "8091/tcp", files{
		"usr/local/apache2/conf/httpd.conf": {content: []byte(strings.Replace(httpdConf, "Listen 80", "Listen 8091", 1)), mode: 0o644},
		"usr/local/apache2/htdocs/pools":    {content: []byte("{\"pools\":[]}\n"), mode: 0o644},
	})
}

func httpdWith(ctx context.Context, in Inputs, port string, over files) (v1.Image, error) {
	system, err := httpdSystem.layer(ctx, in)
	if err != nil {
		return nil, err
	}
	layers := []v1.Layer{system}
	if over != nil {
		top, err := over.layer()
		if err != nil {
			return nil, err
		}
		layers = append(layers, top)
	}
	return withLayers("amd64", v1.Config{
		Cmd: []string{"httpd-foreground"}, Env: []string{searchPath}, WorkingDir: "/usr/local/apache2",
		ExposedPorts: map[string]struct{}{port: {}}, StopSignal: "SIGWINCH",
	}, layers...)
}
