package daemon

import "testing"

func TestRestAfterABurst(t *testing.T) {
	const mb = 1 << 20
	type look struct {
		more, live uint64 // allocated since the look before, held
		give       bool
	}
	for name, looks := range map[string][]look{
		"a start, then nothing":              {{more: 100 * mb, live: 20 * mb}, {1 * mb, 20 * mb, true}, {1 * mb, 20 * mb, false}, {1 * mb, 20 * mb, false}},
		"not while it goes on":               {{more: 100 * mb, live: 20 * mb}, {50 * mb, 20 * mb, false}, {6 * mb, 20 * mb, false}, {5 * mb, 20 * mb, true}},
		"once after each burst":              {{1 * mb, 20 * mb, true}, {100 * mb, 30 * mb, false}, {0, 30 * mb, true}, {0, 20 * mb, false}},
		"a small one rests at a few":         {{3 * mb, 1 * mb, true}, {5 * mb, 1 * mb, false}, {3 * mb, 1 * mb, true}},
		"what a large one does all the time": {{200 * mb, 1000 * mb, true}, {200 * mb, 1000 * mb, false}, {300 * mb, 1000 * mb, false}, {200 * mb, 1000 * mb, true}},
	} {
		r := rest{owes: true}
		var allocated uint64
		for i, l := range looks {
			allocated += l.more
			if got := r.look(allocated, l.live); got != l.give {
				t.Errorf("%s: look %d: %v, want %v", name, i, got, l.give)
			}
		}
	}
}

func TestHeapNow(t *testing.T) {
	allocated, _ := heapNow()
	sink = make([]byte, 1<<20)
	if now, _ := heapNow(); now < allocated+1<<20 {
		t.Errorf("%d bytes allocated, then a megabyte more: %d", allocated, now)
	}
}

var sink []byte
