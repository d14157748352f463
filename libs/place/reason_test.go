package place

import (
	"strings"
	"testing"

	"skep.dev/libs/constraint"
)

// What takes a node out is named: which plugin, which resource and how much of it, which port.
func TestReasonsNameWhatIsMissing(t *testing.T) {
	node := Node{Node: constraint.Node{ID: "n1"}, Ready: true, CPU: 4e9, Memory: 1 << 30, Plugins: []Plugin{{"Volume", "local"}, {"Log", "json-file"}},
		FreeGeneric: []Generic{{Kind: "gpu", Value: 1}}, Ports: []Port{MakePort("udp", 53, "")}}
	for want, r := range map[string]*Request{
		"has no volume plugin rexray":             {Plugins: []Plugin{{"Volume", "rexray"}}},
		"has no log plugin syslog":                {Plugins: []Plugin{{"Log", "syslog"}}},
		"needs 2 of generic resource gpu, 1 free": {Generic: []Generic{{Kind: "gpu", Value: 2}}},
		"needs 1 of generic resource ssd, 0 free": {Generic: []Generic{{Kind: "ssd", Value: 1}}},
		"host-mode port 53/udp already in use":    {Ports: []Port{MakePort("tcp", 80, ""), MakePort("udp", 53, "")}},
	} {
		e := New([]Node{node})
		x := e.Explain(r, nil, nil)
		if len(x.Removed) != 1 || x.Removed[0].Reason != want {
			t.Errorf("%+v: %+v", r, x.Removed)
		}
		if why := e.Why(r, nil); len(r.Plugins) > 0 && !strings.HasSuffix(why, "(missing plugin on 1 node: "+strings.TrimPrefix(want, "has no ")+")") {
			t.Errorf("%s", why)
		}
	}
}
