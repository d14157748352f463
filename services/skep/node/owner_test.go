package node

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// asOwner is the environment variable that has this test binary be `skep init --owner`.
const asOwner = "SKEP_TEST_OWNER"

// A manager's files are of the user that its services run as; the folder stays root's, so that the user renames nothing of others there.
func TestOwner(t *testing.T) {
	data := os.Getenv(asOwner)
	if data != "" {
		m := membership{placement: placement{paths: Paths{Data: data}}, noStart: true, owner: 2377}
		if err := m.become(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(data, "node.json"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(data, "agent"), filepath.Join(data, "mine")); err == nil {
			t.Fatal("the user renamed root's folder")
		}
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("only root becomes somebody else")
	}
	dir, err := os.MkdirTemp("/var/tmp", "skep-owner-") // every folder above it is open to others
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	data = filepath.Join(dir, "data")
	if err := os.MkdirAll(filepath.Join(data, "agent"), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestOwner$")
	cmd.Env = append(os.Environ(), asOwner+"="+data)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for name, want := range map[string]uint32{"": 0, "agent": 0, "run": 2377, "node.json": 2377} {
		st, err := os.Stat(filepath.Join(data, name))
		if err != nil {
			t.Fatal(err)
		}
		if got := st.Sys().(*syscall.Stat_t).Uid; got != want {
			t.Errorf("%q is of user %d, want %d", name, got, want)
		}
		if st.Mode().Perm()&0o007 != 0 || name == "" && st.Mode()&os.ModeSticky == 0 {
			t.Errorf("%q has mode %v", name, st.Mode())
		}
	}

	// A folder of somebody else's is not taken.
	theirs := filepath.Join(dir, "theirs")
	if err := os.Mkdir(theirs, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(theirs, 4711, 4711); err != nil {
		t.Fatal(err)
	}
	m := membership{placement: placement{paths: Paths{Data: theirs}}, noStart: true, owner: 2377}
	if err := m.become(); err == nil || !strings.Contains(err.Error(), "belongs to user 4711") {
		t.Errorf("a folder of user 4711: %v", err)
	}
}

func TestOwnerNeedsNoStart(t *testing.T) {
	for args, want := range map[string]string{
		"--owner 2377":          "--no-start",
		"--owner -1 --no-start": "give the number of a user",
		"--owner me --no-start": "invalid argument",
	} {
		cmd := initCommand()
		var out bytes.Buffer
		cmd.SetOut(&out)
		cmd.SetErr(&out)
		cmd.SetArgs(append(strings.Fields(args), "--data-dir", t.TempDir()))
		if err := cmd.Execute(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", args, err)
		}
	}
}
