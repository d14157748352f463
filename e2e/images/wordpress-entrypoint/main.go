// wordpress-entrypoint starts WordPress in the lab's wordpress image, with the variables of the official image. It puts WordPress into
// /var/www/html when that is an empty volume, several containers at once if need be, and never changes what is there.
//
// It does not wait for the database: WordPress asks for it at each request, and answers with an error until it is there.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"skep.dev/e2e/images/entry"
)

const (
	source = "/usr/src/wordpress"
	site   = "/var/www/html"
	server = "apache2-foreground"
)

func main() {
	if err := start(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "wordpress:", err)
		os.Exit(1)
	}
}

func start(args []string) error {
	if len(args) == 0 {
		args = []string{server}
	}
	if args[0] != server {
		return entry.Become(os.Environ(), args...)
	}
	env, err := environment()
	if err != nil {
		return err
	}
	if err := install(source, site); err != nil {
		return fmt.Errorf("put WordPress into %s: %w", site, err)
	}
	return entry.Become(env, args...)
}

// names of the settings, and what they are when nobody gives them; those without one must be given.
var names = []struct{ name, usual string }{
	{"DB_HOST", "mysql"}, {"DB_NAME", "wordpress"}, {"DB_USER", ""}, {"DB_PASSWORD", ""}, {"DB_CHARSET", "utf8mb4"}, {"DB_COLLATE", ""},
	{"TABLE_PREFIX", "wp_"}, {"DEBUG", ""}, {"CONFIG_EXTRA", ""},
	{"AUTH_KEY", ""}, {"SECURE_AUTH_KEY", ""}, {"LOGGED_IN_KEY", ""}, {"NONCE_KEY", ""},
	{"AUTH_SALT", ""}, {"SECURE_AUTH_SALT", ""}, {"LOGGED_IN_SALT", ""}, {"NONCE_SALT", ""},
}

// environment is that of the server: every WORDPRESS_…_FILE has become the value in the file. Root reads the files here, so that a secret
// may be root's alone; the server's own user could not.
func environment() ([]string, error) {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "WORDPRESS_") {
			env = append(env, kv)
		}
	}
	var bad error
	_, err := os.Stat(filepath.Join(site, config))
	own := err == nil // somebody's own wp-config.php may need none of our settings
	for _, n := range names {
		v, given, err := entry.Setting("WORDPRESS_" + n.name)
		switch {
		case err != nil:
			bad = errors.Join(bad, err)
		case given:
			env = append(env, "WORDPRESS_"+n.name+"="+v)
		case n.usual != "":
			env = append(env, "WORDPRESS_"+n.name+"="+n.usual)
		case !own && (n.name == "DB_USER" || n.name == "DB_PASSWORD"):
			bad = errors.Join(bad, fmt.Errorf("set WORDPRESS_%[1]s or WORDPRESS_%[1]s_FILE: it says how WordPress reaches its database", n.name))
		}
	}
	return env, bad
}
