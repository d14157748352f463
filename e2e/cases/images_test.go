package cases

import (
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// The lab's database is killed over and over while it makes its first files: the next start makes them anew, and what it has at the
// end is all that was asked for. Later starts, killed too, keep it.
func TestDatabaseIsKilledInItsFirstStart(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Hosts: 1})
	c.skep("service", "create", "--detach", "--name", "db", "--restart-delay", "0s", "--mount", "type=volume,source=db,target=/var/lib/mysql",
		"-e", "MYSQL_ROOT_PASSWORD=it's a secret", "-e", "MYSQL_DATABASE=my_db", "-e", "MYSQL_USER=me", "-e", "MYSQL_PASSWORD=mine", "mysql")
	const data = "/var/lib/skep/agent/volumes/db/_data"
	kill := func(after string) {
		t.Helper()
		c.await("a start that has come to "+after, time.Minute, func() string {
			return c.on("m1", "sh", "-c", "pgrep -x mariadbd >/dev/null && test -e "+data+"/"+after+" && pkill -9 -x mariadbd || { echo not yet: $(ls -A "+data+"); }").Stdout
		})
	}
	for _, after := range []string{".skep-initialising", "mysql", "mysql/user.frm"} {
		kill(after)
	}
	sql := func(statement, want string) {
		t.Helper()
		c.await(statement, time.Minute, func() string {
			r := c.on("m1", "skep", "exec", "db.1", "mariadb", "-h", "127.0.0.1", "-ume", "-pmine", "my_db", "-N", "-e", statement)
			if r.Code != 0 || strings.TrimSpace(r.Stdout) != want {
				return r.Stdout + r.Stderr
			}
			return ""
		})
	}
	sql("SELECT CURRENT_USER()", "me@%")
	sql("CREATE TABLE IF NOT EXISTS t (n INT PRIMARY KEY)", "")
	sql("REPLACE INTO t VALUES (42)", "")
	if r := c.on("m1", "skep", "exec", "db.1", "healthcheck.sh"); r.Code != 0 {
		t.Errorf("healthcheck: %s", r.Stderr)
	}
	before := c.only("db", 1)[0].ID
	kill("mysql")
	c.await("another task", time.Minute, func() string {
		if now := c.only("db", 1)[0].ID; now == before {
			return "still " + now
		}
		return ""
	})
	sql("SELECT n FROM t", "42")
	if logs := c.on("m1", "sh", "-c", "skep service logs db 2>&1").Stdout; !strings.Contains(logs, "begin anew") || strings.Count(logs, "the database is made") != 1 || strings.Contains(logs, "secret") {
		t.Errorf("the logs:\n%s", logs)
	}
}
