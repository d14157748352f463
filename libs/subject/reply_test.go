package subject

import (
	"strings"
	"testing"
)

const nodeA, nodeB = "aaaaaaaaaaaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbbbbbbbbbbb"

func TestMayHear(t *testing.T) {
	join, svc, api, node, srv := Join("join-"+nodeA), Svc("state", "status", nodeA), API("service", "inspect"), Node(nodeA, "exec.open"), "$SRV.PING.skep-state"
	store := Store("user-ada") + ".STREAM.INFO.EVENTS"
	inboxes := map[string][]string{ // inbox → the subjects it may be named on
		"_INBOX_" + nodeA + ".x.1":        {svc},
		"_INBOX_mesh-" + nodeA + ".x.1":   {svc, api, node, srv},
		"_INBOX_state-" + nodeB + ".x.1":  {api, node, srv},
		"_INBOX_" + nodeB + ".x.1":        {},
		"_INBOX_user-ada.x.1":             {api, node, srv, store},
		"_INBOX_viewer.user-ada.x.1":      {api},
		"_INBOX_user-" + nodeA + ".x.1":   {api, node, srv},
		"_INBOX_local-root.x.1":           {api, node, srv},
		"_INBOX.x.1":                      {api, node, srv},
		"_INBOX_viewer.user-vic.x.1":      {api},
		"_INBOX_viewer." + nodeA + ".x.1": {},
		"_INBOX_join-" + nodeA + ".x.1":   {join},
		"_INBOX_door-" + nodeA + ".x.1":   {join, svc, api, node, srv},
		"_INBOX_join-" + nodeB + ".x.1":   {},
		"_INBOX_user-.x":                  {},
		"_INBOX_user-ada":                 {},
		"_INBOX_user-ada.":                {},
		"_INBOX_user-ada.x..1":            {},
		"_INBOX_user-ada.*":               {},
		"_INBOX_user-ada.>":               {},
		"_INBOX_user-ada.x*":              {},
		"_INBOX_*.x":                      {},
		"_INBOX_user-ada.x\r\nPUB":        {},
		"_INBOX_user-ada.ü":               {},
		"_INBOX":                          {},
		"_INBOX.":                         {},
		"_INBOX.>":                        {},
		"_INBOXES.x":                      {},
		"_INBOX_.x":                       {},
		"_INBOX_user-ada." + strings.Repeat("x", maxReply): {},
		"": {}, ">": {}, "*": {}, "_R_.x": {}, Spec.Key("cluster"): {}, "$JS.API.STREAM.DELETE.KV_spec": {}, "$SYS.REQ.x": {},
		API("service", "rm"): {}, Svc("state", "status", nodeA): {}, Heartbeat(nodeA): {}, Event("a", "b", "c"): {},
	}
	for reply, may := range inboxes {
		for _, asked := range []string{join, svc, api, node, srv, store, Store("user-ada"), Store(nodeA) + ".x", "$SRV.PING", Heartbeat(nodeA), "$KV.spec.x", "", "skep.v1.svc", "skep.v1"} {
			want := false
			for _, m := range may {
				want = want || m == asked || asked == "$SRV.PING" && m == srv
			}
			if got := MayHear(asked, reply); got != want {
				t.Errorf("asked on %q, answered to %q: %v, want %v", asked, reply, got, want)
			}
		}
	}
}

// FuzzMayHear: whatever a stranger names, an answer goes to one literal inbox or nowhere, and never from a node's endpoint to
// anybody but that node.
func FuzzMayHear(f *testing.F) {
	for _, reply := range []string{"_INBOX.x", "_INBOX_" + nodeA + ".x", "_INBOX_viewer.user-a.x", "_INBOX_state-" + nodeA + ".x.y", "_INBOX_>.x", "$KV.spec.x", ""} {
		for _, asked := range []string{Svc("state", "status", nodeA), API("a", "b"), Node(nodeA, "x"), "$SRV.PING", Join("join-" + nodeA), ""} {
			f.Add(asked, reply)
		}
	}
	f.Fuzz(func(t *testing.T, asked, reply string) {
		if !MayHear(asked, reply) {
			return
		}
		if !strings.HasPrefix(reply, "_INBOX") || !literal(reply) || len(reply) > maxReply || strings.Count(reply, ".") < 1 {
			t.Fatalf("asked on %q: an answer to %q", asked, reply)
		}
		if node, ok := strings.CutPrefix(asked, "skep.v1.svc."); ok {
			node = node[strings.LastIndexByte(node, '.')+1:]
			if owner := InboxOwner(reply); owner != node && !strings.HasSuffix(owner, "-"+node) {
				t.Fatalf("asked on %q: %q hears it", asked, owner)
			}
		}
	})
}
