package ingress

import "github.com/google/nftables"

// Which orders are safe in nftables, and why. A transaction is atomic for one chain, not for one packet:
//
//   - A packet goes through the rules of one generation, the one that was current when it entered its base chain; a
//     chain it is sent to is that generation's too. Generations are two, and take turns.
//   - An element is looked up in the generation of that moment. So two lookups of one packet, or a lookup and the rules
//     around it, may be of two generations.
//   - The base chains of one hook are those that were registered when the packet came to it. New ones are registered
//     before the commit, when they have no rules yet, and old ones taken away after it, when theirs are gone.
//
// Hence three transactions, of which those that have nothing to do are left out. What is referred to is laid first: a
// chain made by one transaction has its rules in both generations by the time the next one refers to it. Then the turn:
// what refers is changed, by one element for each port. Last what is not referred to any more is swept away. A packet
// may be slower than that, so what it has drawn may be gone still: it gets number 0, which a port has for as long as it
// has any. A table with all its base chains may be made at once: to a packet of the old generation it is empty. One that
// is made anew has a twin meanwhile, that was complete before; nothing is done twice, for the first translation of a
// connection is the one that holds, and the other rules do not match what they have changed themselves.
//
// The floor below: what is for a published port and has not been translated in the end is dropped, unless the port has
// no backend (family.missed). Kernels before 6.18 need it, where even one lookup may miss while a commit ends; so do
// packets that were under way while a table of another version, which kept no order, was replaced. What says that a port
// is published (the set `published`) is laid first and swept last, so it holds throughout.
type stage int

const (
	lay stage = iota
	turn
	sweep
)

// referred are the sets in which something is looked up that another lookup, here or for a later packet of the same
// connection, has led to.
var referred = map[string]bool{
	setBackends: true, setBackends6: true, setPublished: true, setPublished6: true, // by ports
	setMacs: true, setReturns: true, setPeers: true, setPeers6: true, // by marks
}

// twinSuffix ends the name of the table that stands in for one that is made anew.
const twinSuffix = "_twin"

func twinOf(t *nftables.Table) *nftables.Table {
	return &nftables.Table{Family: t.Family, Name: t.Name + twinSuffix}
}

// isTwin knows a table by its name; what it holds may be another version's.
func isTwin(t *nftables.Table) bool {
	for _, ours := range []*nftables.Table{hostTable, zonesTable, fabricTable} {
		if t.Family == ours.Family && t.Name == ours.Name+twinSuffix {
			return true
		}
	}
	return false
}
