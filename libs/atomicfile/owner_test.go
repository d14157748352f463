package atomicfile

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// What root writes for services that do not run as root belongs to them, and nothing else is given away.
func TestOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root gives files away")
	}
	const user = 2377
	theirs, ours := t.TempDir(), t.TempDir()
	if err := os.Chown(theirs, user, user); err != nil {
		t.Fatal(err)
	}
	owner := func(path string) uint32 {
		t.Helper()
		st, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		return st.Sys().(*syscall.Stat_t).Uid
	}
	for name, write := range map[string]func(string, []byte) error{"Write": Write, "WriteSync": WriteSync, "Create": Create, "Stage": Stage} {
		path := filepath.Join(theirs, name)
		if err := write(path, []byte("x")); err != nil || owner(path) != user {
			t.Errorf("%s in a folder of theirs: %v, of user %d", name, err, owner(path))
		}
		path = filepath.Join(ours, name)
		if err := write(path, []byte("x")); err != nil || owner(path) != 0 {
			t.Errorf("%s in a folder of root's: %v, of user %d", name, err, owner(path))
		}
		if name == "Create" || name == "Stage" {
			continue
		}
		// A file of theirs in root's folder stays theirs, one of root's in theirs stays root's.
		if err := os.Chown(path, user, user); err != nil {
			t.Fatal(err)
		}
		if err := write(path, []byte("y")); err != nil || owner(path) != user {
			t.Errorf("%s over a file of theirs: %v, of user %d", name, err, owner(path))
		}
		kept := filepath.Join(theirs, "of-root-"+name)
		if err := os.WriteFile(kept, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := write(kept, []byte("y")); err != nil || owner(kept) != 0 {
			t.Errorf("%s over a file of root's: %v, of user %d", name, err, owner(kept))
		}
		// A link does not say whose the file is to be.
		link := filepath.Join(ours, "link-"+name)
		if err := os.Symlink(path, link); err != nil {
			t.Fatal(err)
		}
		if err := write(link, []byte("z")); err != nil || owner(link) != 0 {
			t.Errorf("%s over a link: %v, of user %d", name, err, owner(link))
		}
	}
}
