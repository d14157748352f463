package bus

import (
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"testing"
	"time"

	"skep.dev/libs/id"
)

// house is guests without a broker.
type house struct {
	*guests
	open   map[uint64]bool
	kicked chan uint64
	next   uint64
}

func newHouse() *house {
	h := &house{open: map[uint64]bool{}, kicked: make(chan uint64, 1<<16)}
	h.guests = newGuests(func(cid uint64) { h.kicked <- cid }, func(cid uint64) bool { return h.open[cid] })
	return h
}

func (h *house) come(t *testing.T, id string, role Role, ip string) (cid uint64) {
	t.Helper()
	h.next++
	h.open[h.next] = true
	if err := h.admit(h.next, id, role, &net.TCPAddr{IP: net.ParseIP(ip), Port: 1}); err != nil {
		t.Fatalf("%s %s from %s: %v", role, id, ip, err)
	}
	// Those kicked before are gone now.
	for len(h.kicked) > 0 {
		delete(h.open, <-h.kicked)
	}
	return h.next
}

func (h *house) joiner(t *testing.T, ip string) uint64 {
	return h.come(t, "join-"+id.New(), RoleJoiner, ip)
}

// Whatever strangers do, the newest joiner is in, from their address and from any other.
func TestJoinersMakeRoom(t *testing.T) {
	h := newHouse()
	honest := h.joiner(t, "10.0.0.9")
	for i := range 5000 {
		if c := h.joiner(t, "10.0.0.1"); !h.open[c] {
			t.Fatalf("joiner %d was not let in", i)
		}
	}
	if !h.open[honest] || len(h.joiners) != joinersPerSource+1 {
		t.Errorf("after a flood from one address: the other's is open: %v, %d in all", h.open[honest], len(h.joiners))
	}
	if c := h.joiner(t, "10.0.0.1"); !h.open[c] {
		t.Error("behind the flooding address nobody joins")
	}
	// From many addresses, and many of one /64, which counts as one.
	for i := range 5000 {
		h.joiner(t, fmt.Sprintf("10.1.%d.%d", i%100, 1+i%3))
		h.joiner(t, fmt.Sprintf("2001:db8::%x", i))
	}
	if n := len(h.joiners); n > joinersMost {
		t.Errorf("%d joiners at once", n)
	}
	six := 0
	for _, j := range h.joiners {
		if j.source == "2001:db8::" {
			six++
		}
	}
	if six > joinersPerSource {
		t.Errorf("%d of one /64", six)
	}
	if len(h.joiners) != len(h.conns) || len(h.conns) != len(h.ids) {
		t.Errorf("%d joiners, %d connections, %d names", len(h.joiners), len(h.conns), len(h.ids))
	}
}

func TestConnectionsOfAnIdentityAreBounded(t *testing.T) {
	h := newHouse()
	other := h.come(t, "w2", RoleWorker, "10.0.0.2")
	var last []uint64
	for range 100 {
		last = append(last, h.come(t, "w1", RoleWorker, "10.0.0.1"))
	}
	most := allowanceOf(RoleWorker).conns
	for i, c := range last {
		if h.open[c] != (i >= len(last)-most) {
			t.Errorf("connection %d of %d: open is %v", i, len(last), h.open[c])
		}
	}
	if !h.open[other] {
		t.Error("another's connection was closed")
	}
	if conns, joiners, cut := h.count(); conns != most+1 || joiners != 0 || cut != uint64(len(last)-most) {
		t.Errorf("counted: %d connections, %d joiners, %d closed", conns, joiners, cut)
	}
	// Connections that ended by themselves are not counted, though nobody told us yet.
	for range 100 {
		for _, c := range last[len(last)-most+1:] {
			h.open[c] = false
		}
		last = append(last[len(last)-most:len(last)-most+1], h.come(t, "w1", RoleWorker, "10.0.0.1"))
		for len(last) < most {
			last = append(last, h.come(t, "w1", RoleWorker, "10.0.0.1"))
		}
		if !h.open[last[0]] {
			t.Fatal("a living connection made room for dead ones")
		}
	}
	// A manager's services have no bound.
	for range 1000 {
		h.come(t, "m1", RoleManager, "10.0.0.3")
	}
	if n := len(h.ids["m1"]); n != 1000 {
		t.Errorf("%d of 1000 of a manager's connections", n)
	}
}

func TestWhoLetsTooMuchWaitIsOut(t *testing.T) {
	h := newHouse()
	var deaf []weight
	for i := range 8 {
		deaf = append(deaf, weight{cid: h.come(t, "w1", RoleWorker, "10.0.0.1"), pending: int64(i) << 20})
	}
	quick := weight{cid: h.come(t, "w2", RoleWorker, "10.0.0.1"), pending: 15 << 20, subs: 4096}
	boss := weight{cid: h.come(t, "m1", RoleManager, "10.0.0.1"), pending: 60 << 20, subs: 10_000}
	now := time.Now().Add(time.Millisecond)
	greedy := weight{cid: h.come(t, "w3", RoleWorker, "10.0.0.1"), subs: 4097}
	// 28 MiB over eight connections, none of them too heavy by itself.
	cut := h.weigh(now, append([]weight{quick, boss, greedy}, deaf...))
	if slices.Sort(cut); !slices.Equal(cut, []string{"w1", "w3"}) {
		t.Fatalf("cut off: %v", cut)
	}
	for len(h.kicked) > 0 {
		delete(h.open, <-h.kicked)
	}
	left := int64(0)
	for _, d := range deaf {
		if h.open[d.cid] {
			left += d.pending
		}
	}
	if left > allowanceOf(RoleWorker).pending || !h.open[deaf[0].cid] || !h.open[quick.cid] || !h.open[boss.cid] {
		t.Errorf("%d bytes still wait", left)
	}
	if err := h.admit(1000, "w1", RoleWorker, &net.TCPAddr{}); err == nil {
		t.Error("back at once")
	}
	h.weigh(now.Add(outFor+time.Minute), nil)
	if err := h.admit(1001, "w1", RoleWorker, &net.TCPAddr{}); err != nil {
		t.Errorf("out for ever: %v", err)
	}
}

func TestMistakesCutOff(t *testing.T) {
	h := newHouse()
	j := h.joiner(t, "10.0.0.1")
	h.mistake(j)
	if got := <-h.kicked; got != j || h.who(j) != "" {
		t.Errorf("a joiner's first mistake: %d", got)
	}
	w := h.come(t, "w1", RoleWorker, "10.0.0.1")
	for range mistakeBurst {
		h.mistake(w)
	}
	if len(h.kicked) > 0 || h.who(w) != "w1" {
		t.Error("a worker was cut off for a few mistakes")
	}
	h.mistake(w)
	h.mistake(w)
	if got := <-h.kicked; got != w {
		t.Errorf("%d was cut off", got)
	}
	h.mistake(12345) // nobody's
	if err := h.admit(w+1, "w1", RoleWorker, &net.TCPAddr{}); err == nil {
		t.Error("back at once")
	}
}

// Random comings and goings leave nothing behind.
func TestNothingOfGuestsIsLeft(t *testing.T) {
	h := newHouse()
	for range 20_000 {
		switch rand.N(4) {
		case 0:
			h.joiner(t, fmt.Sprintf("10.0.0.%d", rand.N(5)))
		case 1:
			h.come(t, fmt.Sprint("w", rand.N(50)), RoleWorker, "10.0.0.1")
		case 2:
			for cid := range h.open {
				delete(h.open, cid)
				break
			}
		case 3:
			var open []weight
			for cid := range h.open {
				open = append(open, weight{cid: cid})
			}
			h.weigh(time.Now(), open)
		}
	}
	h.weigh(time.Now().Add(time.Hour), nil)
	if len(h.conns)+len(h.ids)+len(h.joiners)+len(h.out) != 0 {
		t.Errorf("left: %d connections, %d identities, %d joiners, %d out", len(h.conns), len(h.ids), len(h.joiners), len(h.out))
	}
}
