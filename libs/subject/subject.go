// Package subject owns every subject, stream and bucket name of skep. Nothing else in the tree spells one out.
//
// Shape: skep.v1.<class>.<id>.<verb>; the id stands before the verb so that a node's permissions are one
// pattern per class.
package subject

import (
	"slices"
	"strings"
)

// Version is the second token of every subject.
const Version = "v1"

const prefix = "skep." + Version + "."

// Join is where a connection without a certificate asks to join, the only subject it may publish to: skep.v1.join.<joiner>,
// whose last token is the name the broker knows the connection by. The broker asks the vault on the same subject, in the
// cluster's own account.
func Join(joiner string) string { return prefix + "join." + joiner }

// Epoch is where a connection without a certificate asks a manager's broker which cluster, and which founding of it, it is
// of: skep.v1.epoch.<joiner>.
func Epoch(joiner string) string { return prefix + "epoch." + joiner }

// Inboxes are where a connection hears answers; the broker lets it listen to its own only. So who will hear an answer can
// be read off the subject it goes to.

// Inbox begins the inboxes of an identity: a node, a service, a person who may change things.
func Inbox(identity string) string { return inbox + "_" + identity }

// ViewerInbox begins the inboxes of a person who may only look. No identity is called viewer.
func ViewerInbox(identity string) string { return inbox + "_viewer." + identity }

// IsViewerInbox reports whether an answer that goes there is heard by somebody who may only look.
func IsViewerInbox(reply string) bool { return strings.HasPrefix(reply, inbox+"_viewer.") }

// InboxOwner is the identity that hears what goes to an inbox, "" for one that has no owner.
func InboxOwner(reply string) string {
	owner, _, _, _ := splitInbox(reply)
	return owner
}

const inbox = "_INBOX"

// Queue is the queue group of every request endpoint that several instances may serve.
const Queue = "skep"

// API addresses an object endpoint, used by the CLI and gateways: skep.v1.api.service.create.
func API(kind, verb string) string { return prefix + "api." + kind + "." + verb }

// Svc addresses a manager service from a node: skep.v1.svc.state.status.<node>.
func Svc(service, verb, node string) string {
	return prefix + "svc." + service + "." + verb + "." + node
}

// Path is where a node's mesh says which peers do not answer it: skep.v1.svc.health.path.<id>.
func Path(node string) string { return Svc("health", "path", node) }

// Node is a command to a node's agent or mesh: skep.v1.node.<id>.exec.open.
func Node(id, verb string) string { return prefix + "node." + id + "." + verb }

// Push is where a node's task set is re-published whenever it is committed: skep.v1.push.<id>.
func Push(node string) string { return prefix + "push." + node }

// PushFiles is where a node is told that newer versions of secrets or configs are there for tasks that run, or other
// settings of the cluster: skep.v1.push.<id>.files. The message says no more: the node asks the vault and state.
func PushFiles(node string) string { return Push(node) + ".files" }

// PushRole is where a node is told to ask what it should be (api.StateManagers): skep.v1.push.<id>.role.
func PushRole(node string) string { return Push(node) + ".role" }

// ManagerBeat is where a manager's broker says that it is there: skep.v1.mgr.<id>.
func ManagerBeat(node string) string { return prefix + "mgr." + node }

// Net is where a record of bucket endpoint is re-published whenever it is committed: skep.v1.net.<scope>.<item>.
func Net(scope, item string) string { return NetPrefix + scope + "." + item }

// Heartbeat is where a node says it is alive: skep.v1.hb.<id>.
func Heartbeat(node string) string { return prefix + "hb." + node }

// Event names one event: skep.v1.event.<kind>.<id>.<verb>.
func Event(kind, id, verb string) string { return prefix + "event." + kind + "." + id + "." + verb }

// KeptEvent is the subject under which the streams keep events of a kind and verb, whatever they are about: their content has
// the id. The broker holds every subject of a stream in memory, about 300 bytes each, and what existed once must not stay there
// for the days that its events are kept on disk.
func KeptEvent(kind, verb string) string { return Event(kind, "kept", verb) }

// Seen is where an event is told without who did it and from where, to people who may only look: skep.v1.seen.<kind>.<id>.<verb>.
// Nobody keeps these.
func Seen(kind, id, verb string) string { return prefix + "seen." + kind + "." + id + "." + verb }

// IO is one channel (in, out, err, ctl) of a byte stream: skep.v1.io.<node>.<session>.<channel>.
// Channels "in" and "cctl" run towards the node; "out", "err" and "ctl" away from it.
func IO(node, session, channel string) string {
	return prefix + "io." + node + "." + session + "." + channel
}

// Wildcards used by permissions and by those who listen to everything.
const (
	AllAPI          = prefix + "api.>"
	AllHeartbeats   = prefix + "hb.*"
	AllManagerBeats = prefix + "mgr.*"
	AllEvents       = prefix + "event.>"
	AllSeen         = prefix + "seen.>"
	PushPrefix      = prefix + "push."
	NetPrefix       = prefix + "net."
	AllNet          = NetPrefix + ">"
)

// The streams that hold the events, 7 days: what people and the managers changed, and what nodes and their tasks did.
// Whoever may cause the latter, however many, pushes out nothing of the former.
const (
	EventStream     = "EVENTS"
	NodeEventStream = "EVENTS_NODES"
)

// The kinds of events, and of kind node the verbs, as they are shared out between the streams.
var (
	changedKinds = []string{"service", "network", "stack", "cluster", "secret", "config", "registry", "image", "volume", "user", "token"}
	changedNode  = []string{"create", "update", "remove", "fence", "unfence", "manager-join", "manager-leave"}
	nodeVerbs    = []string{"image-pull", "image-remove", "image-load", "volume-create", "volume-update", "volume-remove", "volume-prune", "upgrade", "upgrade-undone", "describe", "unknown", "ready", "down", "disconnected", "path-open", "path-blocked", "fencing", "duplicate"}
)

// EventKinds are the kinds of things that events tell of.
func EventKinds() []string {
	return append(slices.Clone(changedKinds), "node", "task")
}

// EventSubjects are the subjects of one of the streams of events, those of one kind or, with kind "", all.
func EventSubjects(stream, kind string) []string {
	var out []string
	if stream == EventStream {
		for _, k := range changedKinds {
			if kind == "" || kind == k {
				out = append(out, Event(k, "*", "*"))
			}
		}
	} else if kind == "" || kind == "task" {
		out = append(out, Event("task", "*", "*"))
	}
	if kind == "" || kind == "node" {
		verbs := nodeVerbs
		if stream == EventStream {
			verbs = changedNode
		}
		for _, v := range verbs {
			out = append(out, Event("node", "*", v))
		}
	}
	return out
}

// EventKept reports whether a stream keeps events of that kind and verb.
func EventKept(kind, verb string) bool {
	if kind == "node" {
		return slices.Contains(changedNode, verb) || slices.Contains(nodeVerbs, verb)
	}
	return kind == "task" || slices.Contains(changedKinds, kind)
}

// Matches reports whether a subject belongs to a pattern: * stands for one token, > at the end for one or more.
func Matches(pattern, subj string) bool {
	for {
		want, patternRest, more := strings.Cut(pattern, ".")
		have, rest, longer := strings.Cut(subj, ".")
		switch {
		case have == "":
			return false
		case want == ">":
			return !more
		case want != "*" && want != have:
			return false
		case !more || !longer:
			return more == longer
		}
		pattern, subj = patternRest, rest
	}
}

// Bucket is a JetStream key-value bucket. Its stream is KV_<bucket>, its subjects $KV.<bucket>.<key>.
type Bucket string

// The buckets of ARCHITECTURE §3; the comment names the sole writer.
const (
	Spec     Bucket = "spec"     // state
	Rev      Bucket = "rev"      // state
	Task     Bucket = "task"     // scheduler
	Status   Bucket = "status"   // state, for agents
	NodeB    Bucket = "node"     // desc.*: state; live.*: health-monitor; managers: bus
	Endpoint Bucket = "endpoint" // ingress-mesh controller
	Secret   Bucket = "secret"   // secrets-vault
	Value    Bucket = "value"    // secrets-vault; nobody follows it: it may hold gigabytes
	Lease    Bucket = "lease"    // each leader
)

// Buckets lists them all in creation order.
var Buckets = []Bucket{Spec, Rev, Task, Status, NodeB, Endpoint, Secret, Value, Lease}

// Stream is the JetStream stream behind the bucket.
func (b Bucket) Stream() string { return "KV_" + string(b) }

// Key is the full subject of a key.
func (b Bucket) Key(key string) string { return "$KV." + string(b) + "." + key }
