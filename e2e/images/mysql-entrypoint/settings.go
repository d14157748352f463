package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"strings"

	"skep.dev/e2e/images/entry"
)

// settings say what the first start makes.
type settings struct {
	rootPassword             string
	rootHost                 string // from where root may come, besides the container itself; "" is nowhere
	database, user, password string
}

// readSettings reads the environment, in the words of the mysql image (MYSQL_…) and of the mariadb image (MARIADB_…).
func readSettings() (s settings, err error) {
	get := func(name string) string {
		v, _, e := entry.Setting("MARIADB_"+name, "MYSQL_"+name)
		err = errors.Join(err, e)
		return v
	}
	s = settings{rootPassword: get("ROOT_PASSWORD"), rootHost: get("ROOT_HOST"), database: get("DATABASE"), user: get("USER"), password: get("PASSWORD")}
	empty, random := get("ALLOW_EMPTY_PASSWORD")+get("ALLOW_EMPTY_ROOT_PASSWORD"), get("RANDOM_ROOT_PASSWORD")
	if s.rootHost == "" {
		s.rootHost = "%"
	}
	switch {
	case err != nil:
		return s, err
	case s.rootPassword == "" && empty == "" && random == "":
		return s, errors.New("there is no database yet, and no word on its password: set one of MYSQL_ROOT_PASSWORD, MYSQL_ROOT_PASSWORD_FILE, MYSQL_RANDOM_ROOT_PASSWORD and MYSQL_ALLOW_EMPTY_PASSWORD")
	case s.user == "root":
		return s, errors.New("MYSQL_USER is root, which is there anyway: use MYSQL_ROOT_PASSWORD for its password")
	case s.user != "" && s.password == "":
		return s, fmt.Errorf("MYSQL_USER is %q and has no password: set MYSQL_PASSWORD or MYSQL_PASSWORD_FILE", s.user)
	case s.user == "" && s.password != "":
		return s, errors.New("MYSQL_PASSWORD is set and MYSQL_USER is not: say whose password it is")
	}
	if random != "" && s.rootPassword == "" {
		s.rootPassword = rand.Text()
		fmt.Println("mysql: GENERATED ROOT PASSWORD:", s.rootPassword)
	}
	return s, nil
}

// statements are the SQL that makes users and database. The server that runs them reads no grants until it is told to.
func (s settings) statements() string {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format+";\n", args...) }
	say("SET sql_mode=''")
	say("FLUSH PRIVILEGES")
	say("DELETE FROM mysql.global_priv WHERE User IN ('', 'root', 'mysql')") // what the templates put there: nobody, and root without a password
	say("FLUSH PRIVILEGES")
	say("CREATE USER 'root'@'localhost' IDENTIFIED BY %s", quote(s.rootPassword))
	say("GRANT ALL ON *.* TO 'root'@'localhost' WITH GRANT OPTION")
	if s.rootHost != "localhost" {
		say("CREATE USER 'root'@%s IDENTIFIED BY %s", quote(s.rootHost), quote(s.rootPassword))
		say("GRANT ALL ON *.* TO 'root'@%s WITH GRANT OPTION", quote(s.rootHost))
	}
	say("CREATE USER '%s'@'localhost' IDENTIFIED VIA unix_socket", account)
	if s.database != "" {
		say("CREATE DATABASE %s", name(s.database))
	}
	if s.user != "" {
		say("CREATE USER %s@'%%' IDENTIFIED BY %s", quote(s.user), quote(s.password))
		if s.database != "" {
			say("GRANT ALL ON %s.* TO %s@'%%'", pattern(s.database), quote(s.user))
		}
	}
	return b.String()
}

var escapes = strings.NewReplacer(`\`, `\\`, `'`, `\'`, "\n", `\n`, "\r", `\r`, "\x1a", `\Z`)

// quote makes a string of SQL, on one line: the server reads statements by lines.
func quote(s string) string { return "'" + escapes.Replace(s) + "'" }

// name makes the name of a database.
func name(s string) string { return "`" + strings.ReplaceAll(s, "`", "``") + "`" }

// pattern is the name of a database where a pattern is wanted: _ and % mean themselves.
func pattern(s string) string { return name(strings.NewReplacer("_", `\_`, "%", `\%`).Replace(s)) }
