package state

import (
	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"
)

// pageBytes bounds a reply in protobuf. The same as protojson is up to four times as large (measured: 3.6), and both
// must stay below the broker's 1 MiB.
const pageBytes = 160 << 10

// page collects list items until one reply is full.
type page struct {
	limit int
	n     int
	bytes int
}

func newPage(p *skepv1.Page) *page { return &page{limit: int(p.GetSize())} }

// takes reports whether one more item fits, and counts it. The first one always does.
func (p *page) takes(m proto.Message) bool {
	size := proto.Size(m) + 8
	if p.n > 0 && (p.limit > 0 && p.n >= p.limit || p.bytes+size > pageBytes) {
		return false
	}
	p.n++
	p.bytes += size
	return true
}
