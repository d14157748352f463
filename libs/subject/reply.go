package subject

import "strings"

// maxReply bounds the subject an answer may be asked to: prefix, identity and two random tokens take less than half.
const maxReply = 256

// MayHear reports whether an answer to a request on asked may go to reply: to an inbox, spelled out, of an identity that the
// broker lets publish on asked. The broker checks what a connection publishes on, not where it wants the answer, and an answer
// goes out with the rights of who gives it; so whoever answers asks this first.
//
//	asked               whose inbox
//	join.<joiner>       the joiner's, or that of the broker's door for them
//	epoch.<joiner>      the joiner's
//	svc.*.*.<node>      the node's, or that of a service on it
//	api.>               a person's, local root's, a service's; no node's
//	node.>, $SRV.>      the same without viewers
//	By(…, person, …)    that person's
//	js.<person>.>       that person's, no viewer's
func MayHear(asked, reply string) bool {
	owner, tail, viewer, ok := splitInbox(reply)
	if !ok || !literal(tail) {
		return false
	}
	if _, by, _, named := AskedBy(asked); named && owner != by {
		return false
	}
	class, rest, _ := strings.Cut(strings.TrimPrefix(asked, prefix), ".")
	if strings.HasPrefix(asked, "$SRV.") {
		class = "node"
	} else if !strings.HasPrefix(asked, prefix) {
		return false
	}
	kind, on, compound := strings.Cut(owner, "-")
	service := compound && kind != "user" && kind != "join" && on != ""
	person := kind == "user" && on != ""
	if viewer {
		return class == "api" && person
	}
	switch class {
	case "join":
		return kind == "join" && owner == rest || service && kind == "door"
	case "epoch":
		return kind == "join" && owner == rest
	case "svc":
		node := rest[strings.LastIndexByte(rest, '.')+1:]
		return node != "" && (owner == node || service && on == node)
	case "js":
		who, _, ok := StoreAsked(asked)
		return ok && owner == who
	case "api", "node":
		return owner == "" || service || person // nobody but local root hears inboxes without an owner
	}
	return false
}

// splitInbox takes an inbox apart: _INBOX.<tail>, _INBOX_<owner>.<tail>, _INBOX_viewer.<owner>.<tail>.
func splitInbox(reply string) (owner, tail string, viewer, ok bool) {
	if len(reply) > maxReply {
		return "", "", false, false
	}
	if rest, plain := strings.CutPrefix(reply, inbox+"."); plain {
		return "", rest, false, true
	}
	rest, ok := strings.CutPrefix(reply, inbox+"_")
	if !ok {
		return "", "", false, false
	}
	rest, viewer = strings.CutPrefix(rest, "viewer.")
	owner, tail, ok = strings.Cut(rest, ".")
	return owner, tail, viewer, ok && owner != "" && literal(owner)
}

// literal reports whether s is tokens without wildcards, blanks or control characters.
func literal(s string) bool {
	for token := range strings.SplitSeq(s, ".") {
		if token == "" {
			return false
		}
	}
	return strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '*' || r == '>' }) < 0
}
