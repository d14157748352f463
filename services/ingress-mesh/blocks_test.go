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
	if !b.claim(netip.MustParseAddr("10.9.0.9"), "y") || b.claim(netip.MustParseAddr("10.9.0.9"), "x") {
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
