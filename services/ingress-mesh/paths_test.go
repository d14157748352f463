package mesh

import (
	"fmt"
	"slices"
	"testing"

	"skep.dev/services/ingress-mesh/internal/ingress"
)

func manyPeers(n int) (out []ingress.Peer) {
	for i := range n {
		out = append(out, ingress.Peer{ID: fmt.Sprintf("n%04d", i)})
	}
	return out
}

// round plays one: the peers asked, those for which up is false do not answer.
func (p *paths) play(peers []ingress.Peer, up func(id string) bool) (asked []string) {
	for _, x := range p.pick(peers) {
		asked = append(asked, x.ID)
		p.note(x.ID, up(x.ID))
	}
	return asked
}

func TestPathsAskEveryPeerInTurnAndFew(t *testing.T) {
	for _, n := range []int{0, 1, 2, 5, 7, 100} {
		p, peers, asked := newPaths(), manyPeers(n), map[string]int{}
		rounds := max(n, 1)
		for range rounds {
			got := p.play(peers, func(string) bool { return true })
			if len(got) > watchPeers || len(slices.Compact(slices.Sorted(slices.Values(got)))) != len(got) {
				t.Fatalf("%d peers: asked %v in one round", n, got)
			}
			for _, id := range got {
				asked[id]++
			}
		}
		for _, x := range peers {
			if want := min(watchPeers, n); asked[x.ID] != want {
				t.Errorf("%d peers: %s was asked %d times in %d rounds, want %d", n, x.ID, asked[x.ID], rounds, want)
			}
		}
	}
}

func TestPathsConvictAndAcquit(t *testing.T) {
	p, peers := newPaths(), manyPeers(3)
	blocked := func(id string) bool { return id != "n0001" }
	p.play(peers, blocked)
	p.play(peers, blocked)
	if got := p.blocked(); len(got) != 0 {
		t.Fatalf("after two lost packets: %v", got)
	}
	p.play(peers, blocked)
	if got := p.blocked(); !slices.Equal(got, []string{"n0001"}) {
		t.Fatalf("after three: %v", got)
	}
	for range 2 {
		if !p.tell(1) {
			t.Error("a blocked peer is not told again")
		}
	}
	p.play(peers, func(string) bool { return true })
	if got := p.blocked(); len(got) != 0 {
		t.Fatalf("after an answer: %v", got)
	}
	told := 0
	for range 10 {
		if p.tell(0) {
			told++
		}
	}
	if told != sayAgain {
		t.Errorf("the end was told %d times, want %d", told, sayAgain)
	}
	// A peer that left the cluster is nobody's trouble.
	for range convictAfter {
		p.play(peers, blocked)
	}
	p.pick(peers[:1])
	if got := p.blocked(); len(got) != 0 {
		t.Errorf("after it left: %v", got)
	}
}

// However many peers there are and however many do not answer: the packets of a round are bounded, a peer that nobody
// else shadows is found, and what was told ends within a minute of its reason.
func TestPathsOfALargeCluster(t *testing.T) {
	p, peers := newPaths(), manyPeers(5000)
	for range 200 {
		if got := p.play(peers, func(string) bool { return false }); len(got) > 2*watchPeers {
			t.Fatalf("%d peers in one round", len(got))
		}
	}
	if n := len(p.blocked()); n != suspectsMost {
		t.Fatalf("%d blocked, want %d", n, suspectsMost)
	}
	rounds := 0
	for ; len(p.blocked()) > 0; rounds++ {
		p.play(peers, func(string) bool { return true })
	}
	if took := rounds * int(watchEvery.Seconds()); took > 45 {
		t.Errorf("the verdicts ended after %d s", took)
	}
	// One that does not answer is found by the round.
	one := func(id string) bool { return id != "n4321" }
	for range 1000 + convictAfter {
		p.play(peers, one)
	}
	if got := p.blocked(); !slices.Equal(got, []string{"n4321"}) {
		t.Errorf("blocked: %v", got)
	}
}
