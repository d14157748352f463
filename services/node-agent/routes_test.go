package agent

import (
	"fmt"
	"net/netip"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// inOwnNetwork runs f in a new network namespace, which ends with it.
func inOwnNetwork(t *testing.T, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine, and its namespace with it
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("new network namespace (root needed): %w", err)
			return
		}
		done <- f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func ipShell(script string) error {
	if out, err := exec.Command("sh", "-ec", script).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", script, err, out)
	}
	return nil
}

func TestHostRoutes(t *testing.T) {
	inOwnNetwork(t, func() error {
		if none, more, err := hostRoutes(); err != nil || len(none) > 0 || more != 0 {
			t.Errorf("an empty host has %q and %d more: %v", none, more, err)
		}
		err := ipShell(`
			ip link set lo up
			ip link add eth0 type bridge && ip addr add 10.90.1.7/16 dev eth0 && ip addr add 2001:db8:1::7/64 dev eth0 nodad && ip link set eth0 up
			ip link add tun0 type bridge && ip link set tun0 up
			ip link add skep0 type bridge && ip addr add 100.64.2.1/23 dev skep0 && ip link set skep0 up
			ip link add skin0 type bridge && ip link set skin0 up && ip route add 100.64.4.0/23 dev skin0
			ip route add default via 10.90.0.1
			ip -6 route add default dev eth0
			ip route add 0.0.0.0/1 dev tun0 && ip route add 128.0.0.0/1 dev tun0
			ip -6 route add 2000::/3 dev tun0
			ip route add 10.0.0.0/16 dev tun0
			ip route add 10.0.5.0/24 dev tun0
			ip route add 192.168.7.9/32 dev tun0
			ip route add 172.20.0.0/14 nexthop via 10.90.0.1 nexthop via 10.90.0.2
			ip route add 203.0.113.0/24 dev tun0 table 52
			ip route add unreachable 198.51.100.0/24
			ip route add 169.254.0.0/16 dev eth0
			ip -6 route add fd00:5::/48 dev tun0`)
		if err != nil {
			return err
		}
		got, more, err := hostRoutes()
		want := []string{"10.0.0.0/16", "10.90.0.0/16", "172.20.0.0/14", "192.168.7.9/32", "203.0.113.0/24", "2001:db8:1::/64", "fd00:5::/48"}
		if err != nil || more != 0 || !slices.Equal(got, want) {
			t.Errorf("routes %q and %d more, %v; want %q", got, more, err, want)
		}
		// A router has more than anybody wants to know: the widest are told.
		var batch strings.Builder
		for i := range 1000 {
			fmt.Fprintf(&batch, "route add 11.%d.%d.0/24 dev tun0\n", i/256, i%256)
		}
		if err := ipShell("ip -batch - <<'X'\n" + batch.String() + "X"); err != nil {
			return err
		}
		got, more, err = hostRoutes()
		if err != nil || len(got) != maxRoutes || more != len(want)+1000-maxRoutes || !slices.Contains(got, "10.0.0.0/16") || slices.Contains(got, "192.168.7.9/32") {
			t.Errorf("%d routes and %d more, %v: %q", len(got), more, err, got)
		}
		return nil
	})
}

func TestCondense(t *testing.T) {
	p := netip.MustParsePrefix
	got, more := condense([]netip.Prefix{p("10.1.2.0/24"), p("fd00::/48"), p("10.0.0.0/8"), p("10.0.0.0/8"), p("fd00::5/128"), p("9.0.0.0/8")})
	if want := []netip.Prefix{p("9.0.0.0/8"), p("10.0.0.0/8"), p("fd00::/48")}; more != 0 || !slices.Equal(got, want) {
		t.Errorf("%v and %d more, want %v", got, more, want)
	}
}
