package mesh

import (
	"net/netip"
	"testing"
	"time"

	"skep.dev/libs/ipam"
)

func TestBlocksHandOutAndRest(t *testing.T) {
	l, err := ipam.NewLayout(netip.MustParsePrefix("10.9.0.0/24"), netip.Prefix{}, netip.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1000, 0)
	b := newBlocks(l)
	b.now = func() time.Time { return now }
	if _, ok := b.take("a", true); ok {
		t.Fatal("gave an address without a block")
	}
	b.set([]netip.Prefix{netip.MustParsePrefix("10.9.0.0/30"), netip.MustParsePrefix("10.9.0.8/30")})
	// .0 and .1 are the network's and the gateway's.
	want := []string{"10.9.0.2", "10.9.0.3", "10.9.0.8", "10.9.0.9", "10.9.0.10", "10.9.0.11"}
	for i, w := range want {
		a, ok := b.take(string(rune('a'+i)), false)
		if !ok || a.String() != w {
			t.Fatalf("address %d is %s (%v), want %s", i, a, ok, w)
		}
	}
	if a, ok := b.take("z", true); ok {
		t.Fatalf("gave %s, which is in use", a)
	}
	b.release(netip.MustParseAddr("10.9.0.3"), "nobody")
	b.release(netip.MustParseAddr("10.9.0.2"), "a")
	now = now.Add(time.Second)
	b.release(netip.MustParseAddr("10.9.0.9"), "d")
	if a, ok := b.take("z", false); ok {
		t.Fatalf("gave %s before it rested", a)
	}
	if n := b.spare(); n != 0 {
		t.Fatalf("%d spare while all rest", n)
	}
	if a, ok := b.take("z", true); !ok || a.String() != "10.9.0.2" {
		t.Fatalf("in a hurry gave %s, want the one that rested longest", a)
	}
	now = now.Add(restFor)
	if a, ok := b.take("y", false); !ok || a.String() != "10.9.0.9" {
		t.Fatalf("after the rest gave %s", a)
	}
	if b.claim(netip.MustParseAddr("10.9.0.9"), "y") != "y" || b.claim(netip.MustParseAddr("10.9.0.9"), "x") != "y" {
		t.Fatal("a claim is for who holds the address, or for anybody when it is free")
	}
	if got := b.idle(); len(got) != 0 {
		t.Fatalf("idle %v while both are used", got)
	}
	for _, task := range []string{"z", "b"} {
		b.release(netip.MustParseAddr("10.9.0.2"), task)
		b.release(netip.MustParseAddr("10.9.0.3"), task)
	}
	if got := b.idle(); len(got) != 1 || got[0].String() != "10.9.0.0/30" {
		t.Fatalf("idle %v", got)
	}
}

// What is a service's is given to no other task, also when it is in a block, and whoever holds it is told.
func TestReservedAddresses(t *testing.T) {
	l, err := ipam.NewLayout(netip.MustParsePrefix("10.9.0.0/24"), netip.Prefix{}, netip.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	b := newBlocks(l)
	b.set([]netip.Prefix{netip.MustParsePrefix("10.9.0.4/30")})
	reserved := []string{"fd00::5", "10.9.0.5"}
	b.reserved = func() []string { return reserved }
	if n := b.spare(); n != 3 {
		t.Errorf("%d spare of four, one of which is a service's", n)
	}
	for _, want := range []string{"10.9.0.4", "10.9.0.6", "10.9.0.7"} {
		if a, ok := b.take(want, true); !ok || a.String() != want {
			t.Fatalf("gave %s, want %s", a, want)
		}
	}
	if a, ok := b.take("one too many", true); ok {
		t.Errorf("gave %s, which is a service's", a)
	}
	if got := b.claim(netip.MustParseAddr("10.9.0.5"), "its"); got != "its" || b.holder(netip.MustParseAddr("10.9.0.5")) != "its" || b.holder(netip.MustParseAddr("10.9.0.9")) != "" {
		t.Errorf("the service's task got it: %q", got)
	}
}
