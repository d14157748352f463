package lab

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func TestPlan(t *testing.T) {
	l := &Lab{}
	l.plan(Options{Hosts: 4, Managers: 2, SmallDisk: map[string]int64{"w1": 7}})
	var got []string
	for _, h := range l.Hosts {
		got = append(got, h.Name+" "+h.IP)
	}
	want := []string{"m1 10.90.1.1", "m2 10.90.1.2", "w1 10.90.2.1", "w2 10.90.2.2", "client 10.90.0.200", "registry 10.90.0.250"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("plan:\n%v\nwant\n%v", got, want)
	}
	if h, err := l.Host("w1"); err != nil || h.SmallDisk != 7 || h.IP6() != "fd00:90::a5a:201" {
		t.Errorf("w1: %+v, %v", h, err)
	}
	if _, err := l.Host("w3"); err == nil {
		t.Error("a host that is not there was found")
	}
}

func TestNames(t *testing.T) {
	for name, ok := range map[string]bool{"lab": true, "a-b2": true, "": false, "-a": false, "a/b": false, "UP": false, "a2345678901234567890b": false} {
		if validName.MatchString(name) != ok {
			t.Errorf("name %q: valid is %v", name, !ok)
		}
	}
}

// A lab must not take for its own what belongs to one whose name begins like it.
func TestNetnsOfLab(t *testing.T) {
	if !ofNetns("/run/netns/skep-a-m1", "a") || ofNetns("/run/netns/skep-a-b-m1", "a") || !ofNetns("/run/netns/skep-a-b-m1", "a-b") {
		t.Error("namespaces of labs a and a-b are mixed up")
	}
}

func TestStartTimeNamesAProcess(t *testing.T) {
	at, err := startTime(os.Getpid())
	if err != nil || at == 0 {
		t.Fatalf("start time of this process: %d, %v", at, err)
	}
	if !(&Host{PID: os.Getpid(), Started: at}).Running() {
		t.Error("a running process is not seen as one")
	}
	if (&Host{PID: os.Getpid(), Started: at + 1}).Running() {
		t.Error("another process with the number of ours is taken for ours")
	}
}

func TestFindBinSaysWhatToDo(t *testing.T) {
	dir := t.TempDir()
	if _, err := FindBin(dir); err == nil {
		t.Fatal("an empty folder was taken for a bin folder")
	}
	if err := os.MkdirAll(filepath.Join(dir, "tools"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "tools", "containerd"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := FindBin(dir); err != nil || got != dir {
		t.Errorf("FindBin: %q, %v", got, err)
	}
}

func TestHierarchies(t *testing.T) {
	hs, err := hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range hs {
		if h.FSType == "cgroup" && h.Data == "" {
			t.Errorf("version 1 tree %s has no name to mount it by", h.Dir)
		}
	}
}
