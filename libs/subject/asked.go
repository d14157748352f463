package subject

import (
	"encoding/hex"
	"net/netip"
	"strings"
)

// A person's connection asks on the verb's subject plus two tokens: who asks, and from which address. The broker lets it
// publish with its own identity and with the address the connection comes from, and with no others. So the subject of a request
// proves both, which nothing in the request itself could: a body and a reply subject are what the asker makes them.
//
//	skep.v1.api.service.create.user-ada.c0000207            192.0.2.7
//	skep.v1.node.<id>.exec.open.user-ada.20010db8…          an IPv6 address
//
// Services of managers and local root ask without them.

// Local stands for the address of a connection that has none: one within the manager's machine.
const Local = "local"

// LocalRoot is the identity of root on a manager.
const LocalRoot = "local-root"

// userKind begins the identity of a person.
const userKind = "user-"

// From is an address as a token.
func From(a netip.Addr) string {
	if !a.IsValid() {
		return Local
	}
	return hex.EncodeToString(a.Unmap().WithZone("").AsSlice())
}

// Address is what From made a token of, in its usual form: "192.0.2.7", or "local".
func Address(from string) string {
	b, err := hex.DecodeString(from)
	if err != nil {
		return Local
	}
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return Local
	}
	return a.String()
}

// By is where a person asks a verb.
func By(asked, identity, from string) string { return asked + "." + identity + "." + from }

// ByAnybody is the pattern of all By of a verb, "" for one that people do not ask.
func ByAnybody(asked string) string {
	if !strings.HasPrefix(asked, prefix+"api.") && !strings.HasPrefix(asked, prefix+"node.") {
		return ""
	}
	return asked + ".*.*"
}

// AskedBy takes By apart; ok is false for a subject that names nobody.
func AskedBy(subj string) (asked, identity, from string, ok bool) {
	if ByAnybody(subj) == "" {
		return subj, "", "", false
	}
	end := strings.LastIndexByte(subj, '.')
	begin := strings.LastIndexByte(subj[:end], '.')
	if begin < 0 || !IsPerson(subj[begin+1:end]) {
		return subj, "", "", false
	}
	return subj[:begin], subj[begin+1 : end], subj[end+1:], true
}

// IsPerson reports whether an identity is a person's, not a node's or a service's.
func IsPerson(identity string) bool {
	return len(identity) > len(userKind) && strings.HasPrefix(identity, userKind)
}

// Person is the identity of the user of a name.
func Person(name string) string { return userKind + name }

// InboxIdentity is the identity whose inboxes begin with a prefix that Inbox or ViewerInbox made, "" when it is another's.
func InboxIdentity(prefix string) string { return InboxOwner(prefix + ".x") }
