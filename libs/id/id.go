// Package id makes the random identifiers of skep's objects: 25 characters of base36 (129 bits), as Swarm's
// (swarmkit identity/randomid.go), so they can stand in a NATS subject token and in a file name.
package id

import (
	"crypto/rand"
	"math/big"
	"strings"
)

// Len is the length of every identifier.
const Len = 25

// New returns a fresh random identifier.
func New() string {
	var b [17]byte
	if _, err := rand.Read(b[:]); err != nil {
		panic("id: the system has no randomness: " + err.Error())
	}
	return Of(b[:])
}

// Of is the identifier of a seed of at least 17 bytes that nobody can choose freely, such as a sum: the same seed has the same
// one, and two of different seeds differ as random ones do.
func Of(seed []byte) string {
	b := [17]byte(seed)
	b[0] |= 0x80 // never short
	s := new(big.Int).SetBytes(b[:]).Text(36)
	if len(s) < Len {
		s = strings.Repeat("0", Len-len(s)) + s
	}
	return s[len(s)-Len:]
}

// Valid reports whether s has the form of an identifier.
func Valid(s string) bool {
	bad := func(c rune) bool { return (c < '0' || c > '9') && (c < 'a' || c > 'z') }
	return len(s) == Len && !strings.ContainsFunc(s, bad)
}

// Safe reports whether a name that another program gave as an identifier can stand in a file name and a subject: 1 to 64
// letters, digits, hyphens and underscores.
func Safe(s string) bool {
	bad := func(c rune) bool {
		return (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '-' && c != '_'
	}
	return s != "" && len(s) <= 64 && !strings.ContainsFunc(s, bad)
}
