package kv

import (
	"fmt"
	"testing"
)

// What a pass makes of the newest messages of a bucket whose last checkpoint is at 10, with keys at 3, 5 and 8.
func TestJudge(t *testing.T) {
	prior := checkpoint{revision: 11, through: 10, live: []uint64{3, 5, 8}}
	value := func(key string, seq uint64) message { return message{key: key, seq: seq} }
	marker := func(key string, seq uint64) message { return message{key: key, seq: seq, marker: true} }
	for _, c := range []struct {
		what    string
		newest  []message
		settled uint64
		want    string // live, ghosts, retired, markers, lost
	}{
		{"as it was", []message{value("a", 3), value("b", 5), value("c", 8), value(CheckpointKey, 11)}, 0, "[3 5 8] [] [] 0 0"},
		{"one came back", []message{value("a", 3), value("x", 4), value("b", 5), value("c", 8)}, 0, "[3 5 8] [x] [] 0 0"},
		{"written again, and one more", []message{value("b", 5), value("c", 8), value("a", 12), value("d", 13)}, 0, "[5 8 12 13] [] [] 0 0"},
		{"deleted, its marker young", []message{value("b", 5), value("c", 8), marker("a", 12)}, 11, "[5 8] [] [] 1 0"},
		{"deleted, its marker old", []message{value("b", 5), value("c", 8), marker("a", 12)}, 12, "[5 8] [] [a] 1 0"},
		{"one is lost", []message{value("a", 3), value("c", 8)}, 0, "[3 8] [] [] 0 1"},
		{"one is lost beside a new one, which cannot be told", []message{value("a", 3), value("c", 8), value("d", 12)}, 0, "[3 8 12] [] [] 0 0"},
		{"all are lost", nil, 0, "[] [] [] 0 3"},
	} {
		keys := func(all []message) []string {
			out := []string{}
			for _, m := range all {
				out = append(out, m.key)
			}
			return out
		}
		f := judge(prior, picture{through: 20, newest: c.newest}, c.settled)
		if got := fmt.Sprint(f.next.live, keys(f.ghosts), keys(f.retire), f.markers, f.lost); got != c.want || f.next.through != 20 {
			t.Errorf("%s: %s, want %s", c.what, got, c.want)
		}
	}
}
