package constraint

import "testing"

func TestParseErrors(t *testing.T) {
	for in, want := range map[string]string{
		"node.role=manager":            "constraint expected one operator from ==, !=",
		"":                             "constraint expected one operator from ==, !=",
		"1a==b":                        "key '1a' is invalid",
		"a==b":                         "key 'a' is invalid",
		"node.id==":                    "value '' is invalid",
		"node.id== @ ":                 "value '@' is invalid",
		"node.labels.x!=a=b":           "value 'a=b' is invalid",
		"node.labels.a!=b==c":          "key 'node.labels.a!=b' is invalid",
		"node labels.x==y":             "key 'node labels.x' is invalid",
		"node.labels.x < 3":            "constraint expected one operator from ==, !=",
		"node.labels.\u00e9t\u00e9==1": "key 'node.labels.\u00e9t\u00e9' is invalid",
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
