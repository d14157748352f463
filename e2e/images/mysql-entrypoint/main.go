// mysql-entrypoint starts MariaDB in the lab's mysql image. On the first start it makes the database that the environment asks for,
// with the variables of the official mysql and mariadb images; later starts change nothing. A first start that was killed half-way
// is begun anew.
//
// Run as healthcheck.sh it says whether the server takes queries.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"skep.dev/e2e/images/entry"
)

const (
	dataDir = "/var/lib/mysql"
	runDir  = "/run/mysqld"
	account = "mysql" // the user of the system, and of the database for health checks
)

func main() {
	run := start
	if filepath.Base(os.Args[0]) == "healthcheck.sh" {
		run = healthcheck
	}
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "mysql:", err)
		os.Exit(1)
	}
}

func start(args []string) error {
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		args = append([]string{"mysqld"}, args...)
	}
	if !slices.Contains([]string{"mysqld", "mariadbd"}, args[0]) {
		return entry.Become(os.Environ(), args...)
	}
	args[0] = "mariadbd"
	if os.Geteuid() == 0 {
		if err := errors.Join(os.MkdirAll(runDir, 0o755), own(runDir), own(dataDir)); err != nil {
			return err
		}
		args = append(args, "--user="+account)
	}
	state, err := look(dataDir)
	if err != nil {
		return err
	}
	if state != ready {
		settings, err := readSettings()
		if err != nil {
			return err
		}
		if state == halfMade {
			fmt.Fprintln(os.Stderr, "mysql: the first start ended before the database was complete: begin anew")
		}
		if err := initialise(dataDir, settings, args[1:]); err != nil {
			return err
		}
	}
	return entry.Become(withoutPasswords(os.Environ()), args...)
}

// withoutPasswords keeps what only the first start needs from the server.
func withoutPasswords(env []string) []string {
	return slices.DeleteFunc(env, func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return strings.HasSuffix(name, "_PASSWORD")
	})
}

// healthcheck asks the server for a row, through its socket and as a user who may do nothing else. While the database is being made
// nothing listens there.
func healthcheck([]string) error {
	cmd := exec.Command("mariadb", "--no-defaults", "--user="+account, "--connect-timeout=5", "--batch", "--skip-column-names", "--execute=SELECT 1")
	if os.Geteuid() == 0 {
		if err := asAccount(cmd); err != nil {
			return err
		}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("the server takes no queries: %w: %s", err, out)
	}
	return nil
}
