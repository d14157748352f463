package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func tree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, f := range []string{"index.php", "wp-load.php", "wp-includes/version.php", "wp-content/themes/t/style.css"} {
		p := filepath.Join(dir, f)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte("of the image: "+f), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

func TestInstall(t *testing.T) {
	from, to := tree(t), t.TempDir()
	var wg sync.WaitGroup
	errs := make([]error, 4) // containers that share a volume
	for i := range errs {
		wg.Go(func() { errs[i] = install(from, to) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	n := 0
	err := filepath.WalkDir(to, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			n++
			if strings.HasPrefix(d.Name(), ".new-") {
				t.Errorf("left: %s", path)
			}
		}
		return err
	})
	if err != nil || n != 5 {
		t.Errorf("%d files, want 4 and %s (%v)", n, config, err)
	}
	if strings.Contains(read(t, filepath.Join(to, config)), "WORDPRESS_DB_PASSWORD=") {
		t.Error("a password in the volume")
	}
}

// A copy that was killed is finished by the next start, and what somebody changed in the meantime stays.
func TestInstallGoesOn(t *testing.T) {
	from, to := tree(t), t.TempDir()
	if err := os.WriteFile(filepath.Join(to, "wp-load.php"), []byte("changed"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(to, config), []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := install(from, to); err != nil {
		t.Fatal(err)
	}
	if got := read(t, filepath.Join(to, "wp-load.php")) + read(t, filepath.Join(to, config)); got != "changedmine" {
		t.Errorf("replaced: %s", got)
	}
	if got := read(t, filepath.Join(to, "wp-includes/version.php")); got != "of the image: wp-includes/version.php" {
		t.Error(got)
	}
	if err := os.Remove(filepath.Join(to, "wp-includes/version.php")); err != nil {
		t.Fatal(err)
	}
	if err := install(from, to); err != nil { // complete: never touched again
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(to, "wp-includes/version.php")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a complete copy was changed")
	}
}

func TestEnvironment(t *testing.T) {
	if _, err := environment(); err == nil || !strings.Contains(err.Error(), "WORDPRESS_DB_USER") || !strings.Contains(err.Error(), "WORDPRESS_DB_PASSWORD") {
		t.Errorf("without settings: %v", err)
	}
	secret := filepath.Join(t.TempDir(), "p")
	if err := os.WriteFile(secret, []byte("hush\n"), 0o400); err != nil {
		t.Fatal(err)
	}
	t.Setenv("WORDPRESS_DB_USER", "u")
	t.Setenv("WORDPRESS_DB_PASSWORD_FILE", secret)
	t.Setenv("WORDPRESS_TABLE_PREFIX", "blog_")
	env, err := environment()
	if err != nil {
		t.Fatal(err)
	}
	all := "\n" + strings.Join(env, "\n") + "\n"
	for _, want := range []string{"WORDPRESS_DB_PASSWORD=hush", "WORDPRESS_DB_USER=u", "WORDPRESS_DB_HOST=mysql", "WORDPRESS_TABLE_PREFIX=blog_"} {
		if !strings.Contains(all, "\n"+want+"\n") {
			t.Errorf("no %s in %s", want, all)
		}
	}
}
