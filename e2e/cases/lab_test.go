package cases

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/images"
	"skep.dev/e2e/lab"
)

// The lab itself: hosts are apart, a power-off is one, a cable can be pulled, labs do not see one another, nothing stays.
func TestLab(t *testing.T) {
	c := up(t, lab.Options{Hosts: 2, NoCluster: true})
	reach := func(want bool) {
		t.Helper()
		c.await("reaching w1 from the client", 10*time.Second, func() string {
			if r := c.on("client", "ping", "-c1", "-W1", "10.90.2.1"); (r.Code == 0) != want {
				return r.Stdout
			}
			return ""
		})
	}
	for _, cmd := range [][]string{{"curl", "--version"}, {"dig", "-v"}, {"which", "nc"}, {"which", "skep"}} {
		if r := c.on("m1", cmd...); r.Code != 0 {
			t.Errorf("%v on m1: %s", cmd, r.Stderr)
		}
	}
	if got := strings.TrimSpace(c.on("w1", "hostname").Stdout); got != "w1" {
		t.Errorf("w1 calls itself %s", got)
	}
	if r := c.on("m1", "sh", "-c", "exit 3"); r.Code != 3 {
		t.Errorf("exit status %d, want 3", r.Code)
	}

	c.on("w1", "sh", "-c", "echo kept >/var/lib/skep/file; echo gone >/run/file; ip link add probe type dummy; setsid sleep 1000 >/dev/null 2>&1 </dev/null &")
	reach(true)
	if err := c.Cut(c.ctx, "w1"); err != nil {
		t.Fatal(err)
	}
	reach(false)
	if err := c.Heal(c.ctx, "w1"); err != nil {
		t.Fatal(err)
	}
	reach(true)
	if err := c.Kill(c.ctx, "w1"); err != nil {
		t.Fatal(err)
	}
	if err := c.Kill(c.ctx, "w1"); err == nil {
		t.Error("a host that is off was switched off")
	}
	reach(false)
	if err := c.Start(c.ctx, "w1"); err != nil {
		t.Fatal(err)
	}
	reach(true)
	out := c.on("w1", "sh", "-c", "cat /var/lib/skep/file /run/file; ip -o link show probe; pgrep sleep; ls /run/skep").Stdout
	if strings.TrimSpace(out) != "kept" {
		t.Errorf("after a power-off w1 has %q, want its disk and nothing else", out)
	}

	if _, err := lab.Up(c.ctx, lab.Options{Name: c.Name, NoCluster: true, Bin: c.Bin}); err == nil {
		t.Error("a second lab of the same name came up")
	}
	other, err := lab.Up(c.ctx, lab.Options{Name: "t-other", Hosts: 1, NoCluster: true, Lifeline: true})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Down()
	r, err := other.Run(c.ctx, "m1", "ping", "-c1", "-W1", "10.90.2.1")
	if err != nil || r.Code == 0 {
		t.Errorf("a host of another lab reaches ours: %v %v", r, err)
	}
	if err := other.Down(); err != nil {
		t.Error(err)
	}
	reach(true)
}

// Every image of the project is in the registry under the name users write, and nothing else is needed to read it.
func TestLabRegistry(t *testing.T) {
	c := up(t, lab.Options{Hosts: 1, NoCluster: true})
	for _, name := range images.Names() {
		repo, tag, _ := strings.Cut(name, ":")
		if !strings.Contains(repo, "/") {
			repo = "library/" + repo
		}
		r := c.on("client", "curl", "-sf", "-H", "Accept: application/vnd.oci.image.manifest.v1+json", "http://"+lab.RegistryAddress+"/v2/"+repo+"/manifests/"+tag)
		if r.Code != 0 || !strings.Contains(r.Stdout, "application/vnd.oci.image.layer") {
			t.Errorf("%s: %d %s", name, r.Code, r.Stdout)
		}
	}
	in, err := lab.Inputs(c.Bin)
	if err != nil {
		t.Fatal(err)
	}
	imgs, err := images.Build(c.ctx, in, "whoami:v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := images.WriteArchive(filepath.Join(t.TempDir(), "a.tar"), imgs...); err != nil {
		t.Error(err)
	}
}
