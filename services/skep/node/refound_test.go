package node

import (
	"strings"
	"testing"
)

// Where there is nothing to found anew from, the command says so and changes nothing.
func TestForceNewClusterIsRefused(t *testing.T) {
	p := Paths{Data: t.TempDir(), Run: t.TempDir()}
	refused := func(want string) {
		t.Helper()
		out, err := command(t, p, "init", "--force-new-cluster")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, got %v\n%s", want, err, out)
		}
	}
	refused("This node is not part of a swarm, so there is nothing to found anew")
	rec := &Record{NodeID: "abc", ClusterID: "c", Role: RoleWorker, Managers: []string{"127.0.0.1:1"}}
	if err := rec.Save(p); err != nil {
		t.Fatal(err)
	}
	refused("This node is a worker and has no copy of the cluster's data")
	rec.Role, rec.Advertise = RoleManager, "127.0.0.1:2"
	if err := rec.Save(p); err != nil {
		t.Fatal(err)
	}
	refused("this manager has no copy of the cluster's data")
}
