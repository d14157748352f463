package reconcile

import (
	"math/rand/v2"

	"skep.dev/libs/id"
)

// IDs makes task identifiers: 25 characters base36 like libs/id, from a seeded ChaCha8, so that a plan of a million
// tasks does not spend its time on them and a test can repeat them.
type IDs struct{ src *rand.ChaCha8 }

// NewIDs seeds the generator; the seed must come from crypto/rand outside tests.
func NewIDs(seed [32]byte) *IDs { return &IDs{src: rand.NewChaCha8(seed)} }

// Next is a fresh identifier.
func (g *IDs) Next() string {
	const digits = "0123456789abcdefghijklmnopqrstuvwxyz"
	var b [id.Len]byte
	for i := 0; i < len(b); {
		v := g.src.Uint64()
		for range 12 { // 36^12 < 2^63: the bias is below 2^-1 of a digit in 10^18
			if i == len(b) {
				break
			}
			b[i] = digits[v%36]
			v /= 36
			i++
		}
	}
	return string(b[:])
}
