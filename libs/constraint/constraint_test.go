package constraint

import (
	"strings"
	"testing"
)

func TestParseErrors(t *testing.T) {
	for in, want := range map[string]string{
		"node.role=manager":     "constraint expected one operator from ==, !=",
		"":                      "constraint expected one operator from ==, !=",
		"1a==b":                 "key '1a' is invalid",
		"a==b":                  "key 'a' is invalid",
		"node.id==":             "value '' is invalid",
		"node.id== @ ":          "value '@' is invalid",
		"node.labels.a=b==c":    "constraint expected one operator from ==, !=",
		"=":                     "constraint expected one operator from ==, !=",
		"!=x":                   "key '' is invalid",
		"==x":                   "constraint expected one operator from ==, !=",
		"node.labels.x==a\x01b": "value 'a\x01b' is invalid",
		"node labels.x==y":      "key 'node labels.x' is invalid",
		"node.labels.x < 3":     "constraint expected one operator from ==, !=",
		"node.labels.a b==1":    "key 'node.labels.a b' is invalid",
	} {
		_, err := Parse([]string{"node.role==worker", in})
		if err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %s", in, err, want)
		}
	}
}

func TestMatch(t *testing.T) {
	n := &Node{
		ID: "abc", Hostname: "Web1", Addr: "10.1.2.3", Role: "worker", OS: "linux", Arch: "amd64",
		Labels: map[string]string{"zone": "eu", "Case": "x"}, EngineLabels: map[string]string{"disk": "ssd"},
	}
	for expr, want := range map[string]bool{
		"node.id==ABC": true, "NODE.ID == abc": true, "node.id != abc": false,
		"node.hostname==web1": true, "node.hostname==web*": false,
		"node.ip==10.1.2.3": true, "node.ip==10.1.0.0/16": true, "node.ip!=10.1.0.0/16": false,
		"node.ip==10.2.0.0/16": false, "node.ip!=10.2.0.0/16": true, "node.ip==nonsense": false, "node.ip!=nonsense": false,
		"node.ip==10.1.2.99/16": true, "node.ip==::ffff:10.1.2.3": true,
		"node.role==Worker": true, "node.role!=manager": true,
		"node.platform.os==linux": true, "node.platform.arch==x86_64": true, "node.platform.arch!=amd64": false,
		"node.labels.zone==EU": true, "node.labels.Zone==eu": false, "node.labels.case==x": false, "Node.Labels.Case==x": true,
		"node.labels.missing==x": false, "node.labels.missing!=x": true,
		"engine.labels.disk==ssd": true, "engine.labels.disk!=ssd": false,
		"node.unknown==x": false, "node.unknown!=x": false, "node.labels==x": false,
	} {
		cs, err := Parse([]string{expr})
		if err != nil {
			t.Errorf("%s: %v", expr, err)
			continue
		}
		if got := MatchAll(cs, n); got != want {
			t.Errorf("%s: got %v", expr, got)
		}
	}
	if !MatchAll(nil, n) {
		t.Error("no constraint must match")
	}
	empty := &Node{}
	cs, _ := Parse([]string{"node.ip!=10.0.0.1"})
	if !MatchAll(cs, empty) {
		t.Error("a node without an address is not 10.0.0.1")
	}
}

// Whatever label a node may have, a constraint can ask for; and a label without a value is another thing than none.
func TestEveryLabelMatches(t *testing.T) {
	for _, l := range [][2]string{
		{"jobs", ""}, {"a", "a=b"}, {"a", "b==c"}, {"a", "!=x"}, {"a", "=x"}, {"a", "x, y"}, {"topology.kubernetes.io/zone", "eu-1"}, {"\u00e9t\u00e9", "\u00fc\u6f22 '\"@"}, {"1", "0"}, {"x:y@z", "{a}"},
	} {
		if err := CheckLabel(l[0], l[1]); err != nil {
			t.Errorf("%s=%s: %v", l[0], l[1], err)
		}
		with := &Node{Labels: map[string]string{l[0]: l[1]}, EngineLabels: map[string]string{l[0]: l[1]}}
		for _, scope := range []string{"node.labels.", "engine.labels."} {
			for op, want := range map[string][2]bool{"==": {true, false}, "!=": {false, true}, " == ": {true, false}} {
				cs, err := Parse([]string{scope + l[0] + op + l[1]})
				if err != nil {
					t.Errorf("%s%s%s: %v", l[0], op, l[1], err)
					continue
				}
				if got := MatchAll(cs, with); got != want[0] {
					t.Errorf("%s%s%s on a node with it: %v", l[0], op, l[1], got)
				}
				if got := MatchAll(cs, &Node{}); got != want[1] {
					t.Errorf("%s%s%s on a node without: %v", l[0], op, l[1], got)
				}
			}
		}
	}
	for _, l := range [][2]string{{"", "x"}, {"a b", "x"}, {"a!", "x"}, {"a=", "x"}, {"a", " x"}, {"a", "x\n"}, {"a", "x\x00y"}, {"a", "\xff"}} {
		if CheckLabel(l[0], l[1]) == nil {
			t.Errorf("%q=%q can be set", l[0], l[1])
		}
	}
}

func TestCheck(t *testing.T) {
	for in, want := range map[string]string{
		"foo==bar": "key 'foo' is unknown (did you mean node.labels.foo?)", "node.rol==worker": "(did you mean node.role?)", "hostname==x": "(did you mean node.hostname?)",
		"node.label.zone==x": "(did you mean node.labels.zone?)", "node.ip==nonsense": "value 'nonsense' is invalid: node.ip", "node.role==boss": "node.role is manager or worker", "node.unknown!=x": "key 'node.unknown' is unknown",
	} {
		if err := Check([]string{"node.role==worker", in}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", in, err, want)
		}
	}
	if err := Check([]string{"node.labels.jobs==", "NODE.Role!=Manager", "node.ip!=10.0.0.0/8", "engine.labels.x==y"}); err != nil {
		t.Error(err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("node.labels.zone==eu")
	f.Add("node.ip!=::/0")
	n := &Node{ID: "x", Addr: "::1"}
	f.Fuzz(func(t *testing.T, s string) {
		cs, err := Parse([]string{s})
		if err != nil {
			return
		}
		MatchAll(cs, n)
		if again, err := Parse([]string{cs[0].String()}); err != nil || again[0].String() != cs[0].String() {
			t.Fatalf("%q does not survive its own printing: %v", s, err)
		}
	})
}
