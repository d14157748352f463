package event

import (
	"slices"
	"strings"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/spec"
	"skep.dev/libs/subject"
)

// Sort is a kind and verb of events: what people and programs that follow them may rely on. A verb or an attribute, once in a
// release, keeps its name and meaning; others may be added.
type Sort struct {
	Kind, Verb string
	// From is the service that publishes it.
	From string
	// Attributes are the keys there may be. One that ends in ".*" stands for key.old, key.new: the value before and after,
	// where it changed; a * within stands for a word of the user's.
	Attributes []string
	// Text says when it is published.
	Text string
}

// Stream is the stream that keeps such events.
func (s Sort) Stream() string {
	for _, stream := range []string{subject.EventStream, subject.NodeEventStream} {
		for _, on := range subject.EventSubjects(stream, s.Kind) {
			if subject.Matches(on, subject.Event(s.Kind, "x", s.Verb)) {
				return stream
			}
		}
	}
	return ""
}

// May reports whether an event of the sort may have an attribute.
func (s Sort) May(attribute string) bool {
	return slices.ContainsFunc(s.Attributes, func(a string) bool {
		if key, both := strings.CutSuffix(a, ".*"); both {
			if _, word, user := strings.Cut(key, "*"); user && word == "" {
				return (strings.HasSuffix(attribute, ".old") || strings.HasSuffix(attribute, ".new")) && strings.HasPrefix(attribute, strings.TrimSuffix(key, "*"))
			}
			return attribute == key+".old" || attribute == key+".new"
		}
		return attribute == a
	})
}

// Sorts are all of them, in the order of docs/events.md.
func Sorts() []Sort { return sorts }

// Of finds the sort of a kind and verb.
func Of(kind, verb string) (Sort, bool) {
	i := slices.IndexFunc(sorts, func(s Sort) bool { return s.Kind == kind && s.Verb == verb })
	if i < 0 {
		return Sort{}, false
	}
	return sorts[i], true
}

// Attributes that several sorts have.
var (
	ofTask   = []string{"node", "node.id", "service", "service.id", "exitCode", "error", "tasks"}
	ofHealth = []string{"node", "node.id", "service", "service.id", "health.*", "tasks"}
	ofClaim  = []string{"driver", "node", "node.id", "service.id"}
	ofStack  = []string{"name", "revision"}
	ofUser   = []string{"role", "expires"}
	ofLock   = []string{"key", "node", "hostname"}
	ofBackup = []string{"opens", "file", "size", "due", "node", "hostname"}
	ofTwice  = []string{"hostname", "addr", "second.hostname", "second.addr"}
)

var sorts = slices.Concat(
	[]Sort{
		{"service", "create", "state", []string{"name", "image.new"}, "a service was created"},
		{"service", "update", "state, scheduler", []string{"name", "image.*", "replicas.*", "revision.*", "rollout", "updatestate.new"},
			"its spec or number of replicas changed; with `rollout` somebody paused, resumed or promoted its update; with `updatestate.new` (from the scheduler) its update came that far"},
		{"service", "remove", "state", []string{"name"}, "a service was removed"},
		{"service", "run", "state", []string{"name", "run", "due"}, "a run of a job began; `due` when its schedule said so"},
		{"service", "run-skipped", "state", []string{"name", "run", "due"}, "a time of its schedule passed without a run; the message says why"},
		{"network", "create", "state", []string{"name", "type"}, "a network was created"},
		{"network", "remove", "state", []string{"name", "type"}, "a network was removed"},
		{"stack", "deploy", "state", ofStack, "somebody asked for a stack to be deployed"},
		{"stack", "rollback", "state", ofStack, "somebody asked for an earlier revision of a stack"},
		{"stack", "deployed", "state", ofStack, "all of it is as asked; the services' tasks follow"},
		{"stack", "remove", "state", ofStack, "somebody asked for a stack to be removed"},
		{"stack", "removed", "state", ofStack, "nothing of it is left"},
	},
	ofFiles("secret"), ofFiles("config"),
	[]Sort{
		{"registry", "create", "secrets-vault", []string{"name", "version"}, "the credentials of a registry were kept for a service"},
		{"registry", "deliver", "secrets-vault", []string{"name", "version", "node", "tasks"}, "a node was given them"},
		{"registry", "remove", "secrets-vault", []string{"name", "not.taken.back"}, "no service refers to them any more"},
		{"registry", "restore", "secrets-vault", []string{"name", "services"}, "their removal was taken back: a service that refers to them was being made"},
		{"user", "issue", "secrets-vault", ofUser, "a certificate was made for a user; the id is its serial number"},
		{"user", "exchange", "secrets-vault", ofUser, "a user exchanged a certificate for one of the new root"},
		{"user", "revoke", "secrets-vault", ofUser, "a certificate is refused from now on"},
		{"volume", "release", "scheduler", ofClaim, "somebody said that the node which held a volume is off; the id is that of the claim"},
		{"volume", "claim-lost", "state", ofClaim, "the node that holds a volume was removed"},
		{"cluster", "create", "state", nil, "the cluster was founded"},
		{"cluster", "update", "state", nil, "the cluster's settings changed"},
		{"cluster", "token-read", "secrets-vault", []string{"role"}, "somebody was shown a join token"},
		{"cluster", "token-rotate", "secrets-vault", []string{"role"}, "a join token was replaced"},
		{"cluster", "ca-rotate", "secrets-vault", []string{"phase", "root", "next"}, "a rotation of the root came that far"},
		{"cluster", "master-deliver", "secrets-vault", []string{"node", "hostname", "autolock", "by"}, "a manager was given the key that opens the vault"},
		{"cluster", "autolock-on", "secrets-vault", ofLock, "managers are locked when they start"},
		{"cluster", "autolock-off", "secrets-vault", ofLock, "managers are not locked any more"},
		{"cluster", "unlock-key-read", "secrets-vault", ofLock, "somebody was shown the unlock key; `key` is its number, not the key"},
		{"cluster", "unlock-key-rotate", "secrets-vault", ofLock, "the unlock key was replaced"},
		{"cluster", "locked", "secrets-vault", ofLock, "a manager started locked"},
		{"cluster", "unlock", "secrets-vault", ofLock, "a manager was unlocked"},
		{"cluster", "unlock-refused", "secrets-vault", ofLock, "a manager was given a key that does not open it"},
		{"cluster", "backup", "secrets-vault", ofBackup, "a backup was made; `file`, `size` and `due` when a schedule said so"},
		{"cluster", "backup-failed", "secrets-vault", []string{"why", "due", "node", "hostname"}, "a scheduled backup was not made; it is tried again"},
		{"cluster", "backup-key", "secrets-vault", []string{"opens", "node", "hostname"}, "what scheduled backups are sealed under was replaced"},
		{"node", "create", "state", []string{"name", "role"}, "a node was admitted"},
		{"node", "update", "state", []string{"name", "availability.*", "role.*", "certified.*", "label.*.*", "reason"}, "its availability, role, certificate or labels changed"},
		{"node", "remove", "state", []string{"name"}, "a node was removed"},
		{"node", "fence", "state", []string{"name", "by.command"}, "it counts as cut off: what it held goes to others"},
		{"node", "unfence", "state", []string{"name", "by.command"}, "the fence was taken back"},
		{"node", "manager-join", "bus", []string{"server"}, "its server joined the group of managers; the message says what they bear now"},
		{"node", "manager-leave", "bus", []string{"server"}, "its server left the group of managers"},
		{"node", "describe", "state", []string{"name", "name.*", "addr.*", "nanoCpus.*", "memoryBytes.*", "name.taken"}, "it says something else of itself than before"},
		{"node", "ready", "health-monitor", []string{"state.*"}, "it is heard, and up"},
		{"node", "down", "health-monitor", []string{"state.*"}, "it was not heard for three heartbeat periods, or left"},
		{"node", "disconnected", "health-monitor", []string{"state.*"}, "it was not heard after the managers' own silence: it is not judged yet"},
		{"node", "unknown", "health-monitor", []string{"state.*"}, "it was not heard yet"},
		{"node", "path-blocked", "health-monitor", nil, "nodes do not reach it through the data path; the message names them"},
		{"node", "path-open", "health-monitor", nil, "they reach it again"},
		{"node", "fencing", "health-monitor", []string{"name", "volumes"}, "the fencing command is run for it, or failed; the message says which"},
		{"node", "duplicate", "state, bus", ofTwice, "two machines run as this node: the second is refused"},
		{"node", "image-pull", "state", []string{"name", "image"}, "somebody had it pull an image"},
		{"node", "image-remove", "state", []string{"name", "image"}, "somebody removed an image from it"},
		{"node", "image-load", "state", []string{"name", "image"}, "somebody loaded images onto it"},
		{"node", "volume-create", "state", []string{"name", "volume"}, "somebody created a volume on it"},
		{"node", "volume-update", "state", []string{"name", "volume"}, "somebody changed a volume of it"},
		{"node", "volume-remove", "state", []string{"name", "volume"}, "somebody removed a volume of it"},
		{"node", "volume-prune", "state", []string{"name", "volume"}, "somebody removed its unused volumes"},
		{"node", "upgrade", "state", []string{"name", "version"}, "somebody had it take another version"},
		{"node", "upgrade-undone", "state", []string{"name", "version"}, "it went back to the version before; `version` says why, too"},
	},
	ofTasks(),
)

// ofFiles are the sorts of secrets or configs.
func ofFiles(kind string) []Sort {
	return []Sort{
		{kind, "create", "secrets-vault", []string{"name", "version"}, "a " + kind + " was created"},
		{kind, "update", "secrets-vault", []string{"name", "version", "rollback.to"}, "it has a new version, or, without `version`, other labels; `rollback.to`: the new version's value is that of an earlier one"},
		{kind, "remove", "secrets-vault", []string{"name", "not.taken.back"}, "it was removed; `not.taken.back` names the nodes that may still have a value in a file"},
		{kind, "read", "secrets-vault", []string{"name", "version"}, "somebody was shown a value"},
		{kind, "deliver", "secrets-vault", []string{"name", "version", "node", "tasks"}, "a node was given a value for its tasks"},
		{kind, "restore", "secrets-vault", []string{"name", "services"}, "its removal was taken back: a service that refers to it was being made"},
	}
}

// ofTasks are the sorts of tasks: their states, how their health and readiness change, and what people do inside them.
func ofTasks() []Sort {
	text := map[skepv1.TaskState]string{
		skepv1.TaskState_TASK_STATE_NEW: "it was made", skepv1.TaskState_TASK_STATE_PENDING: "it waits for a node", skepv1.TaskState_TASK_STATE_ASSIGNED: "it has a node",
		skepv1.TaskState_TASK_STATE_ACCEPTED: "its node has taken it", skepv1.TaskState_TASK_STATE_PREPARING: "its node pulls the image and makes the container",
		skepv1.TaskState_TASK_STATE_READY: "its container could start, or its readiness check passes again", skepv1.TaskState_TASK_STATE_STARTING: "it starts",
		skepv1.TaskState_TASK_STATE_RUNNING: "it runs", skepv1.TaskState_TASK_STATE_COMPLETE: "it ended with status 0", skepv1.TaskState_TASK_STATE_SHUTDOWN: "it was stopped",
		skepv1.TaskState_TASK_STATE_FAILED: "it ended by itself, or could not go on", skepv1.TaskState_TASK_STATE_REJECTED: "its node could not begin it",
		skepv1.TaskState_TASK_STATE_REMOVE: "it is taken away", skepv1.TaskState_TASK_STATE_ORPHANED: "its node was away for too long",
	}
	var out []Sort
	values := skepv1.TaskState(0).Descriptor().Values()
	for i := range values.Len() {
		state := skepv1.TaskState(values.Get(i).Number())
		s := Sort{"task", spec.Word(state), "state", ofTask, text[state]}
		if state == skepv1.TaskState_TASK_STATE_READY {
			s.From, s.Attributes = "state, health-monitor", append(slices.Clone(ofTask), "health.*")
		}
		out = append(out, s)
	}
	return append(out,
		Sort{"task", "not-ready", "health-monitor", ofHealth, "its readiness check fails"},
		Sort{"task", "healthy", "health-monitor", ofHealth, "its health check passes"},
		Sort{"task", "unhealthy", "health-monitor", ofHealth, "its health check fails; the message is what it printed"},
		Sort{"task", "exec", "state", append(slices.Clone(ofTask), "name", "command"), "somebody ran a command in it"},
	)
}
