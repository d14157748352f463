package daemon

import "testing"

func TestRestAfterABurst(t *testing.T) {
	const mb = 1 << 20
	type look struct {
		more, live uint64 // allocated since the look before, held
		give       bool
	}
	burst, rest, gives := look{100 * mb, 20 * mb, false}, look{1 * mb, 20 * mb, false}, look{1 * mb, 20 * mb, true}
	for name, looks := range map[string][]look{
		"a start, then nothing":              {burst, gives, rest, rest, rest, gives, rest, rest, rest, gives, rest, rest, rest, rest, rest, rest},
		"not while it goes on":               {burst, {50 * mb, 20 * mb, false}, {21 * mb, 20 * mb, false}, {20 * mb, 20 * mb, true}},
		"after each burst":                   {gives, rest, burst, gives, rest, rest, rest, gives, burst, burst, gives},
		"a small one rests at a few":         {{3 * mb, 1 * mb, true}, {17 * mb, 1 * mb, false}, {16 * mb, 1 * mb, true}},
		"what a large one does all the time": {{900 * mb, 1000 * mb, true}, {900 * mb, 1000 * mb, false}, {1100 * mb, 1000 * mb, false}, {900 * mb, 1000 * mb, true}},
	} {
		var r atRest
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
