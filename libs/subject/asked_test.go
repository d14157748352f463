package subject

import (
	"net/netip"
	"strings"
	"testing"
)

func TestBy(t *testing.T) {
	for text, token := range map[string]string{
		"192.0.2.7": "c0000207", "::ffff:192.0.2.7": "c0000207", "2001:db8::1": "20010db8000000000000000000000001", "fe80::1%eth0": "fe800000000000000000000000000001", "0.0.0.0": "00000000",
	} {
		a := netip.MustParseAddr(text)
		got := From(a)
		if got != token {
			t.Errorf("%s is %s, want %s", text, got, token)
		}
		if back := Address(got); back != a.Unmap().WithZone("").String() {
			t.Errorf("%s is read as %s", got, back)
		}
	}
	if From(netip.Addr{}) != Local || Address(Local) != Local || Address("") != Local || Address("zz") != Local || Address("0102") != Local {
		t.Error("no address")
	}
	verb := API("service", "create")
	asked, who, from, ok := AskedBy(By(verb, "user-ada", "c0000207"))
	if asked != verb || who != "user-ada" || from != "c0000207" || !ok {
		t.Error(asked, who, from, ok)
	}
	if !Matches(ByAnybody(verb), By(verb, "user-ada", Local)) || Matches(ByAnybody(verb), verb) {
		t.Error(ByAnybody(verb))
	}
	for _, s := range []string{verb, Node(nodeA, "stats"), Node(nodeA, "image.load.open"), Svc("state", "status", nodeA), Svc("user-ada", "x", "y"), Join("join-x"), "$SRV.PING", "", "skep.v1.api.", "user-a.b", "a.user-b.c"} {
		if _, who, _, ok := AskedBy(s); ok {
			t.Errorf("%q is asked by %s", s, who)
		}
	}
	if IsPerson("user-") || IsPerson("") || IsPerson("root") || !IsPerson(Person("x")) {
		t.Error("who is a person")
	}
}

func TestMayHearByName(t *testing.T) {
	for _, verb := range []string{API("service", "rm"), Node(nodeA, "exec.open")} {
		s := By(verb, "user-ada", "c0000207")
		for reply, want := range map[string]bool{
			"_INBOX_user-ada.x": true, "_INBOX_viewer.user-ada.x": strings.Contains(verb, ".api."),
			"_INBOX_user-bob.x": false, "_INBOX_viewer.user-bob.x": false, "_INBOX.x": false, "_INBOX_local-root.x": false, "_INBOX_state-" + nodeA + ".x": false, "_INBOX_" + nodeA + ".x": false,
			"_INBOX_user-ada.>": false, Spec.Key("cluster"): false, "": false,
		} {
			if got := MayHear(s, reply); got != want {
				t.Errorf("asked on %s, answered to %q: %v, want %v", s, reply, got, want)
			}
		}
	}
}

// FuzzAskedBy: whatever a subject is, who asks is taken from its last two tokens, and put together again it is the same.
func FuzzAskedBy(f *testing.F) {
	for _, s := range []string{By(API("a", "b"), "user-x", Local), "skep.v1.api.user-a.b.c", "skep.v1.node.user-a.b", "skep.v1.api.user-x.y"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		asked, who, from, ok := AskedBy(s)
		if !ok && asked != s || ok && (By(asked, who, from) != s || !IsPerson(who) || strings.Contains(who, ".") || strings.Contains(from, ".")) {
			t.Fatalf("%q is %q by %q from %q", s, asked, who, from)
		}
		_ = Address(from)
	})
}
