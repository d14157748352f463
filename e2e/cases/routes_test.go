package cases

import (
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// A host has a company's network behind a VPN: networks that name no subnet avoid it, one that names it warns, and the
// doctor tells when a route comes later.
func TestNetworksAvoidTheHostsRoutes(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{})
	c.skep("network", "create", "early")
	if out := c.skep("network", "inspect", "early"); !strings.Contains(out, "10.0.0.0/20") {
		t.Fatalf("the first network is\n%s", out)
	}
	c.must("w1", "ip route add 10.0.0.0/16 via "+fabric["m1"])
	c.await("the doctor to name network, node and route", 3*time.Minute, func() string {
		out := c.on("m1", "skep", "doctor").Stdout
		for _, word := range []string{"network early", "10.0.0.0/20", "10.0.0.0/16", "node w1"} {
			if !strings.Contains(out, word) {
				return out
			}
		}
		return ""
	})
	c.skep("network", "create", "late")
	if out := c.skep("network", "inspect", "late"); !strings.Contains(out, "10.1.0.0/20") {
		t.Errorf("beside the route of w1 the next network is\n%s", out)
	}
	r := c.on("m1", "skep", "network", "create", "--subnet", "10.0.128.0/24", "given")
	if r.Code != 0 || !strings.Contains(r.Stderr, "overlaps the route 10.0.0.0/16 of node w1") {
		t.Errorf("status %d, %q", r.Code, r.Stderr)
	}
}
