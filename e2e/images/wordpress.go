package images

import (
	"context"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

const wordpressApache = `ServerRoot /etc/apache2
ServerName localhost
Listen 80
PidFile /run/apache2.pid
Mutex posixsem
User www-data
Group www-data
LoadModule mpm_prefork_module /usr/lib/apache2/modules/mod_mpm_prefork.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule dir_module /usr/lib/apache2/modules/mod_dir.so
LoadModule env_module /usr/lib/apache2/modules/mod_env.so
LoadModule expires_module /usr/lib/apache2/modules/mod_expires.so
LoadModule mime_module /usr/lib/apache2/modules/mod_mime.so
LoadModule rewrite_module /usr/lib/apache2/modules/mod_rewrite.so
LoadModule setenvif_module /usr/lib/apache2/modules/mod_setenvif.so
LoadModule php_module /usr/lib/apache2/modules/libphp8.2.so
TypesConfig /etc/mime.types
StartServers 2
MinSpareServers 1
MaxSpareServers 4
MaxRequestWorkers 16
MaxConnectionsPerChild 500
DocumentRoot /var/www/html
DirectoryIndex index.php index.html
AcceptPathInfo On
<Directory />
  Require all denied
</Directory>
<Directory /var/www/html>
  Options FollowSymLinks
  AllowOverride All
  Require all granted
</Directory>
<FilesMatch "\.php$">
  SetHandler application/x-httpd-php
</FilesMatch>
<FilesMatch "^\.ht">
  Require all denied
</FilesMatch>
ServerTokens Prod
LogFormat "%h %l %u %t \"%r\" %>s %b" common
CustomLog /proc/self/fd/1 common
ErrorLog /proc/self/fd/2
`

const wordpressPHP = `error_reporting = E_ALL & ~E_DEPRECATED & ~E_STRICT
display_errors = Off
log_errors = On
memory_limit = 256M
upload_max_filesize = 64M
post_max_size = 64M
session.save_path = /tmp
expose_php = Off
zend_extension = opcache.so
opcache.memory_consumption = 64
opcache.max_accelerated_files = 4000
extension = mysqlnd.so
extension = mysqli.so
extension = ctype.so
extension = curl.so
extension = dom.so
extension = exif.so
extension = fileinfo.so
extension = iconv.so
extension = mbstring.so
extension = posix.so
extension = simplexml.so
extension = tokenizer.so
extension = xml.so
extension = xmlreader.so
extension = xmlwriter.so
`

const apacheForeground = `#!/bin/sh
set -e
rm -f /run/apache2.pid
exec /usr/sbin/apache2 -f /etc/apache2/wordpress.conf -DFOREGROUND "$@"
`

// wordpressSystem is WordPress with one theme, Apache and PHP. PHP's gd is dropped with the 60 MB of video codecs that it needs: pictures
// are stored and shown, but no small copies of them are made.
var wordpressSystem = debian{name: "wordpress", recipe: "2", keep: []string{"usr/share/zoneinfo/"},
	packages: "apache2-bin,libapache2-mod-php8.2,php8.2-mysql,php8.2-xml,php8.2-mbstring,php8.2-curl,wordpress,wordpress-theme-twentytwentyone,curl,dash,coreutils",
	drop: []string{
		"usr/bin/mariadb", "usr/bin/my_print_defaults", "usr/bin/mysql", "usr/bin/replace", "usr/bin/resolve_stack_dump", "usr/bin/perror", "usr/bin/perl", "usr/bin/php",
		"usr/lib/file/", "usr/lib/php/20220829/gd.so", "usr/share/fonts/", "etc/perl/", "var/lib/wordpress/", "usr/share/mysql/",
		"usr/lib/x86_64-linux-gnu/libperl", "usr/lib/x86_64-linux-gnu/libx265", "usr/lib/x86_64-linux-gnu/libSvtAv1Enc", "usr/lib/x86_64-linux-gnu/libaom",
		"usr/lib/x86_64-linux-gnu/librav1e", "usr/lib/x86_64-linux-gnu/libheif", "usr/lib/x86_64-linux-gnu/libavif", "usr/lib/x86_64-linux-gnu/libgd.",
		"usr/lib/x86_64-linux-gnu/libdav1d", "usr/lib/x86_64-linux-gnu/libde265", "usr/lib/x86_64-linux-gnu/libyuv", "usr/lib/x86_64-linux-gnu/libgav1",
		"usr/src/wordpress/wp-config.php", "usr/src/wordpress/readme.html", "usr/src/wordpress/.htaccess", "usr/src/wordpress/wp-content/themes/twentytwentyone/package-lock.json", "etc/wordpress/"},
	own: func(f files) {
		f.put("etc/apache2/wordpress.conf", []byte(wordpressApache), 0o644)
		f.put("etc/php/8.2/apache2/php.ini", []byte(wordpressPHP), 0o644)
		f.put("usr/local/bin/apache2-foreground", []byte(apacheForeground), 0o755)
		f.mkdir("var/www/html", 0o755)
		f.mkdir("run/lock", 0o1777)
	},
	moveFrom: "usr/share/wordpress/", moveTo: "usr/src/wordpress/"}

// wordpress is Debian's WordPress behind the variables of the official image, see wordpress-entrypoint.
func wordpress(ctx context.Context, in Inputs) (v1.Image, error) {
	system, err := wordpressSystem.layer(ctx, in)
	if err != nil {
		return nil, err
	}
	top := files{}
	if err := top.program("usr/local/bin/wordpress-entrypoint", in, "wordpress-entrypoint"); err != nil {
		return nil, err
	}
	own, err := top.layer()
	if err != nil {
		return nil, err
	}
	return withLayers("amd64", v1.Config{
		Entrypoint: []string{"wordpress-entrypoint"}, Cmd: []string{"apache2-foreground"}, Env: []string{searchPath}, WorkingDir: "/var/www/html",
		ExposedPorts: map[string]struct{}{"80/tcp": {}}, Volumes: map[string]struct{}{"/var/www/html": {}}, StopSignal: "SIGWINCH",
	}, system, own)
}
