package doctor

import (
	"slices"

	"skep.dev/libs/spec"
)

// dataPath says what goes between nodes in the clear. That is a choice and no fault, so it is told as it is.
func (d *exam) dataPath() {
	const check = "data path"
	var plain, encrypted []string
	for _, n := range d.settled.networks {
		switch {
		case n.GetVni() == 0: // of one node
		case spec.Encrypted(n.GetSpec()):
			encrypted = append(encrypted, n.GetSpec().GetName())
		default:
			plain = append(plain, n.GetSpec().GetName())
		}
	}
	slices.Sort(plain)
	slices.Sort(encrypted)
	sealed := ""
	if len(encrypted) > 0 {
		sealed = "; encrypted are " + list(encrypted)
	}
	switch {
	case len(d.After.Nodes) < 2:
		d.add(OK, check, "there is one node, which takes nothing from others%s", sealed)
	case len(plain) == 0:
		d.add(OK, check, "no network goes between nodes in the clear, published ports do: a host that can send UDP in the name of a node's address reaches their tasks%s", sealed)
	default:
		d.add(OK, check, "in the clear are published ports and %s: a host that can send UDP in the name of a node's address reaches tasks there (skep network create -o encrypted)%s", list(plain), sealed)
	}
}
