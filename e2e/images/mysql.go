package images

import (
	"context"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// mysqlConf: names are not looked up, because a container's address rarely has one and every connection would wait for it.
const mysqlConf = `[client-server]
socket = /run/mysqld/mysqld.sock

[mysqld]
datadir = /var/lib/mysql
pid-file = /run/mysqld/mysqld.pid
bind-address = *
skip-name-resolve
character-set-server = utf8mb4
skip-log-bin
`

// mysqlSystem is MariaDB's server and client. What is dropped are tools that the entrypoint does without.
var mysqlSystem = debian{name: "mysql", recipe: "1", packages: "mariadb-server-core,mariadb-client-core,dash,coreutils",
	drop: []string{"usr/bin/innochecksum", "usr/bin/resolveip", "usr/bin/mariadb-slap", "usr/bin/mariadb-conv", "usr/bin/mariadb-binlog",
		"usr/bin/mariadb-show", "usr/bin/mariadb-import", "usr/bin/mariadb-plugin", "usr/bin/replace", "usr/bin/resolve_stack_dump", "usr/bin/perror", "bin/tar"},
	own: func(f files) {
		f.account("mysql", 999)
		f.put("etc/mysql/my.cnf", []byte(mysqlConf), 0o644)
		f.mkdir("var/lib/mysql", 0o755)
		f.link("usr/bin/mysql", "mariadb")
		f.link("usr/bin/mysqldump", "mariadb-dump")
	}}

// mysql is Debian's MariaDB behind the variables of the official images, see mysql-entrypoint.
func mysql(ctx context.Context, in Inputs) (v1.Image, error) {
	system, err := mysqlSystem.layer(ctx, in)
	if err != nil {
		return nil, err
	}
	top := files{}
	if err := top.program("usr/local/bin/mysql-entrypoint", in, "mysql-entrypoint"); err != nil {
		return nil, err
	}
	top.link("usr/local/bin/healthcheck.sh", "mysql-entrypoint")
	own, err := top.layer()
	if err != nil {
		return nil, err
	}
	return withLayers("amd64", v1.Config{
		Entrypoint: []string{"mysql-entrypoint"}, Cmd: []string{"mysqld"}, Env: []string{searchPath},
		ExposedPorts: map[string]struct{}{"3306/tcp": {}}, Volumes: map[string]struct{}{"/var/lib/mysql": {}},
	}, system, own)
}
