package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSettingsAreRefusedBeforeAnythingIsMade(t *testing.T) {
	for what, c := range map[string]struct {
		env   map[string]string
		fails string
	}{
		"no word on the password":      {fails: "MYSQL_ROOT_PASSWORD"},
		"a root password":              {env: map[string]string{"MYSQL_ROOT_PASSWORD": "x"}},
		"mariadb's words":              {env: map[string]string{"MARIADB_ROOT_PASSWORD": "x"}},
		"none, as asked":               {env: map[string]string{"MYSQL_ALLOW_EMPTY_PASSWORD": "yes"}},
		"a random one":                 {env: map[string]string{"MYSQL_RANDOM_ROOT_PASSWORD": "yes"}},
		"a user without a password":    {env: map[string]string{"MYSQL_ROOT_PASSWORD": "x", "MYSQL_USER": "u"}, fails: "MYSQL_PASSWORD"},
		"a password without a user":    {env: map[string]string{"MYSQL_ROOT_PASSWORD": "x", "MYSQL_PASSWORD": "p"}, fails: "MYSQL_USER"},
		"root again":                   {env: map[string]string{"MYSQL_ROOT_PASSWORD": "x", "MYSQL_USER": "root", "MYSQL_PASSWORD": "p"}, fails: "root"},
		"a password and a file for it": {env: map[string]string{"MYSQL_ROOT_PASSWORD": "x", "MYSQL_ROOT_PASSWORD_FILE": "/x"}, fails: "both"},
	} {
		t.Run(what, func(t *testing.T) {
			for k, v := range c.env {
				t.Setenv(k, v)
			}
			s, err := readSettings()
			if (err == nil) != (c.fails == "") || err != nil && !strings.Contains(err.Error(), c.fails) {
				t.Errorf("%v, want %q", err, c.fails)
			}
			if what == "a random one" && len(s.rootPassword) < 20 {
				t.Errorf("the random password is %q", s.rootPassword)
			}
		})
	}
}

func TestStatementsQuote(t *testing.T) {
	s := settings{rootPassword: `a'; DROP DATABASE mysql; -- \`, rootHost: "%", database: "my`_db", user: "u'", password: "two\nlines"}
	sql := s.statements()
	for _, want := range []string{`IDENTIFIED BY 'a\'; DROP DATABASE mysql; -- \\'`, "CREATE DATABASE `my``_db`", `CREATE USER 'u\''@'%' IDENTIFIED BY 'two\nlines'`, "GRANT ALL ON `my``\\_db`.*"} {
		if !strings.Contains(sql, want) {
			t.Errorf("no %s in\n%s", want, sql)
		}
	}
	for line := range strings.Lines(sql) {
		if !strings.HasSuffix(line, ";\n") {
			t.Errorf("a statement over several lines: %q", line)
		}
	}
}

// A first start that was killed at any point is begun anew; what is no database of ours is never touched.
func TestLookAndMark(t *testing.T) {
	put := func(dir string, names ...string) {
		t.Helper()
		for _, n := range names {
			if err := os.MkdirAll(filepath.Join(dir, n), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	dir := t.TempDir()
	want := func(what string, st state) {
		t.Helper()
		if got, err := look(dir); err != nil || got != st {
			t.Errorf("%s: %v %v, want %v", what, got, err, st)
		}
	}
	want("nothing", empty)
	put(dir, "lost+found")
	want("a fresh file system", empty)
	if err := mark(dir); err != nil {
		t.Fatal(err)
	}
	want("marked", halfMade)
	put(dir, "mysql", "wordpress", "performance_schema")
	want("killed half-way", halfMade)
	if err := mark(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "mysql")); err == nil {
		t.Error("what a killed start left is still there")
	}
	if _, err := os.Stat(filepath.Join(dir, "lost+found")); err != nil {
		t.Error("lost+found is gone")
	}
	put(dir, "mysql")
	if err := os.Remove(filepath.Join(dir, marker)); err != nil {
		t.Fatal(err)
	}
	want("complete", ready)

	other := t.TempDir()
	put(other, "holiday pictures")
	if _, err := look(other); err == nil || !strings.Contains(err.Error(), "holiday pictures") {
		t.Errorf("somebody's files: %v", err)
	}
}

func TestPasswordsAreForTheFirstStart(t *testing.T) {
	env := withoutPasswords([]string{"PATH=/bin", "MYSQL_ROOT_PASSWORD=x", "MYSQL_PASSWORD=y", "MYSQL_PASSWORD_FILE=/run/secrets/p"})
	if got := strings.Join(env, " "); got != "PATH=/bin MYSQL_PASSWORD_FILE=/run/secrets/p" {
		t.Error(got)
	}
}
