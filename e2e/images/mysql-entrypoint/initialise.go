package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// marker is there from before the first file of a database until its last: a start that finds it begins anew.
const marker = ".skep-initialising"

// state of a data folder.
type state int

const (
	empty    state = iota // nothing but what file systems put there
	halfMade              // by a first start that did not end
	ready
)

// look tells what a data folder holds. Files that are no database are somebody's: they are refused, not touched.
func look(dir string) (state, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, fmt.Errorf("look into the data folder: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.Name() != "lost+found" {
			names = append(names, e.Name())
		}
	}
	switch {
	case slices.Contains(names, marker):
		return halfMade, nil
	case len(names) == 0:
		return empty, nil
	case slices.Contains(names, "mysql"):
		return ready, nil
	}
	return 0, fmt.Errorf("%s holds %s and no database: mount an empty volume, or the one with the database", dir, strings.Join(names[:min(3, len(names))], ", "))
}

// templates are Debian's SQL for a new server, in the order in which they build on one another.
var templates = []string{"mysql_system_tables.sql", "mysql_performance_tables.sql", "mysql_system_tables_data.sql", "fill_help_tables.sql",
	"maria_add_gis_sp_bootstrap.sql", "mysql_sys_schema.sql"}

// initialise makes the database, by a server that listens nowhere and reads SQL from its input.
func initialise(dir string, s settings, flags []string) error {
	if err := mark(dir); err != nil {
		return err
	}
	in := []io.Reader{strings.NewReader("CREATE DATABASE mysql;\nUSE mysql;\nSET @auth_root_socket=NULL;\n")}
	for _, t := range templates {
		f, err := os.Open(filepath.Join("/usr/share/mysql", t))
		if err != nil {
			return fmt.Errorf("read the templates of a new database: %w", err)
		}
		defer f.Close()
		in = append(in, f, strings.NewReader("\n"))
	}
	in = append(in, strings.NewReader("USE mysql;\n"+s.statements()))
	var said strings.Builder
	cmd := exec.Command("mariadbd", append(slices.Clone(flags), "--bootstrap", "--datadir="+dir, "--log-warnings=0", "--enforce-storage-engine=", "--max-allowed-packet=8M", "--net-buffer-length=16K")...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = io.MultiReader(in...), &said, &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("make the database: %w\n%s", err, said.String())
	}
	if strings.Contains(said.String(), "ERROR:") { // a statement that failed
		return fmt.Errorf("make the database: %s", said.String())
	}
	if err := sync(dir); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(dir, marker)); err != nil {
		return err
	}
	fmt.Println("mysql: the database is made")
	return sync(dir)
}

// mark empties the folder of a half-made database and writes the marker. The marker goes last of the old and comes first of the new.
func mark(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if e.Name() != marker && e.Name() != "lost+found" {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, marker), nil, 0o600)
	}
	if err != nil {
		return fmt.Errorf("prepare the data folder: %w", err)
	}
	return sync(dir)
}

// sync brings a folder's entries to the disk.
func sync(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
