package bus

import (
	"slices"

	"github.com/nats-io/nats-server/v2/server"

	"skep.dev/libs/api"
	"skep.dev/libs/keys"
	"skep.dev/libs/subject"
)

// Role decides what a connection may do.
type Role string

// Roles of connections. Those of services are their in-process names: the writers of libs/keys.
const (
	RoleManager  Role = "manager"  // certificate OU=skep-manager, and the node's own assembly
	RoleWorker   Role = "worker"   // certificate OU=skep-worker
	RoleWitness  Role = "witness"  // certificate OU=skep-witness
	RoleAgent    Role = "agent"    // the agent of a manager, in process: a worker that also resolves images
	RoleAdmin    Role = "admin"    // certificate OU=skep-user, title admin
	RoleOperator Role = "operator" // certificate OU=skep-user, title operator
	RoleViewer   Role = "viewer"   // certificate OU=skep-user, title viewer
	RoleLocal    Role = "local"    // root on a manager, through the socket: an admin
	RoleJoiner   Role = "joiner"   // no certificate
	RoleDoor     Role = "door"     // in process: carries what joiners ask to the vault
)

// Permissions is what the connection of a role and identity may publish and subscribe; nil means everything in the
// account. Nothing else in the tree decides that. from is the address of the connection, as a subject's token (subject.From).
//
// Nodes never hold JetStream rights: three of them escalate (a rollup header on one's own key empties the bucket, a
// consumer's deliver subject publishes anywhere, a consumer's name may be another's). Requests reach them by reply
// permission alone.
//
// What may be said or heard on a subject may be, or not, on its near form as well (subject.Near).
func Permissions(role Role, id, from string) *server.Permissions {
	p := permissions(role, id, from)
	if p == nil {
		return nil
	}
	for _, s := range []*server.SubjectPermission{p.Publish, p.Subscribe} {
		if s != nil {
			s.Allow, s.Deny = subject.WithNear(s.Allow), subject.WithNear(s.Deny)
		}
	}
	return p
}

func permissions(role Role, id, from string) *server.Permissions {
	inbox := subject.Inbox(id) + ".>"
	answers := &server.ResponsePermission{MaxMsgs: repliesMost, Expires: replyWithin}
	switch role {
	case RoleManager:
		return nil

	case RoleWorker, RoleAgent:
		sub := []string{
			inbox,
			subject.Push(id), subject.Push(id) + ".>",
			subject.AllNet, // where endpoints are; which networks a node has changes too often for a permission each
			subject.Node(id, ">"),
			subject.IO(id, "*", "in"), subject.IO(id, "*", "cctl"),
			"$SRV.>",
		}
		if role == RoleAgent {
			sub = append(sub, api.ImageResolve.Subject(), subject.ByAnybody(api.ImageResolve.Subject()))
		}
		return &server.Permissions{
			Publish: &server.SubjectPermission{Allow: []string{
				subject.Heartbeat(id),
				subject.Svc("*", "*", id),
				subject.IO(id, "*", "out"), subject.IO(id, "*", "err"), subject.IO(id, "*", "ctl"),
			}},
			Subscribe: &server.SubjectPermission{Allow: sub},
			Response:  answers,
		}

	case RoleWitness:
		// What it needs to be a node that is let into the group and stays in it. On the routes, where the store is copied, a
		// broker is believed: see DESIGN.md.
		return &server.Permissions{
			Publish: &server.SubjectPermission{Allow: []string{
				subject.Heartbeat(id), api.StateDescribe.At(id).Subject(), api.StateManagers.At(id).Subject(), api.VaultRenew.At(id).Subject(), api.VaultTrust.At(id).Subject(),
				api.BusEnlist.At(id).Subject(), api.ManagerList.Subject(),
			}},
			Subscribe: &server.SubjectPermission{Allow: []string{inbox, subject.Inbox("bus-"+id) + ".>", subject.Push(id) + ".>", subject.Node(id, ">"), "$SRV.>"}},
			Response:  answers,
		}

	case RoleAdmin, RoleLocal, RoleOperator:
		sub := []string{
			inbox, subject.AllEvents, subject.AllHeartbeats,
			subject.IO("*", "*", "out"), subject.IO("*", "*", "err"), subject.IO("*", "*", "ctl"),
		}
		if role == RoleLocal {
			sub = append(sub, "_INBOX.>")
		}
		pub := append(asks(role, id, from), "$SRV.>", subject.IO("*", "*", "in"), subject.IO("*", "*", "cctl"))
		if role != RoleLocal { // who has no tools but skep
			pub = append(pub, subject.Store(id)+".>")
			for _, s := range subject.Readable() {
				pub = append(pub, "$JS.ACK."+s+".>") // tools acknowledge what they read; no consumer listens: none acknowledges
			}
		}
		return &server.Permissions{
			Publish:   &server.SubjectPermission{Allow: pub},
			Subscribe: &server.SubjectPermission{Allow: sub},
		}

	case RoleViewer:
		// No commands to nodes, not even reading ones: a request lets the node answer at the subject the asker names, so a
		// viewer and a dishonest worker together could write anywhere.
		return &server.Permissions{
			Publish:   &server.SubjectPermission{Allow: asks(role, id, from)},
			Subscribe: &server.SubjectPermission{Allow: []string{subject.ViewerInbox(id) + ".>", subject.AllSeen}},
		}

	case RoleJoiner:
		return &server.Permissions{
			Publish:   &server.SubjectPermission{Allow: []string{subject.Join(id), subject.Epoch(id)}},
			Subscribe: &server.SubjectPermission{Allow: []string{inbox}},
		}

	case RoleDoor:
		return &server.Permissions{
			Publish:   &server.SubjectPermission{Allow: []string{subject.Join("*")}},
			Subscribe: &server.SubjectPermission{Allow: []string{inbox}},
		}
	}

	if isService(role) {
		return &server.Permissions{Publish: &server.SubjectPermission{Allow: []string{">"}, Deny: foreign(role)}}
	}
	return nobody()
}

// asks are the subjects on which people of a role ask the verbs that are for them. A user's name who asks and from where,
// and the broker lets the connection say nothing else there; on the bare ones users may ask what changes nothing, so that
// `nats req` works by hand. Root on a manager is believed as it is.
func asks(role Role, id, from string) (out []string) {
	for _, v := range api.All() {
		if !mayAsk(role, v.Callers) {
			continue
		}
		if role != RoleLocal {
			out = append(out, subject.By(v.Subject, id, from))
		}
		if role == RoleLocal || v.Effect == api.Reads {
			out = append(out, v.Subject)
		}
	}
	return out
}

// mayAsk reports whether people of a role may ask what is for certain callers.
func mayAsk(role Role, by api.Callers) bool {
	switch by {
	case api.Viewers:
		return role == RoleViewer || role == RoleOperator || role == RoleAdmin || role == RoleLocal
	case api.Operators:
		return role == RoleOperator || role == RoleAdmin || role == RoleLocal
	case api.Admins:
		return role == RoleAdmin || role == RoleLocal
	}
	return false
}

// isService reports whether a role is the in-process name of a service: of one that writes to the store.
func isService(role Role) bool {
	return slices.ContainsFunc(keys.All(), func(f *keys.Family) bool { return f.Writer == keys.Writer(role) && f.Writer != keys.Bus })
}

// foreign is what a service must not do: write keys it does not own (ARCHITECTURE §3: one writer per key), or destroy a
// stream.
func foreign(role Role) []string {
	deny := []string{
		"$JS.API.STREAM.DELETE.>", "$JS.API.STREAM.PURGE.>", "$JS.API.STREAM.RESTORE.>", "$JS.API.STREAM.MSG.DELETE.>",
		subject.Join("*"), subject.Bucket("*").Key(keys.Checkpoint.Key()),
		// What managers' brokers tell each other.
		api.BusReach.Subject(), api.BusSelf.Subject(), api.BusWitness.Subject(), api.BusRetire.Subject(), api.BusEnlist.Subject(), subject.AllManagerBeats,
	}
	for _, b := range subject.Buckets {
		var others []string
		writes := false
		for _, f := range keys.All() {
			switch {
			case f.Bucket != b:
			case f.Writer == keys.Writer(role):
				writes = true
			case f.Alone():
				others = append(others, b.Key(f.Key()))
			default:
				others = append(others, b.Key(f.Key(">")))
			}
		}
		if !writes {
			others = []string{b.Key(">")}
		}
		deny = append(deny, others...)
	}
	return deny
}

// nobody may do nothing. (An empty allow list would mean everything.)
func nobody() *server.Permissions {
	return &server.Permissions{Publish: &server.SubjectPermission{Deny: []string{">"}}, Subscribe: &server.SubjectPermission{Deny: []string{">"}}}
}
