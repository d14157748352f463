package bus

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nats.go/micro"

	"skep.dev/libs/api"
	"skep.dev/libs/doctest"
	"skep.dev/libs/id"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/pki/pkitest"
	"skep.dev/libs/rpc"
	"skep.dev/libs/stream"
	"skep.dev/libs/subject"
)

// connections are who may be connected, as docs/subjects.md calls them. Each is asked of the rules as itself, id "own"; people
// ask in their own name.
var connections = []struct {
	role   Role
	called string
}{
	{RoleJoiner, "joiner"}, {RoleViewer, "viewer"}, {RoleOperator, "operator"}, {RoleAdmin, "admin"}, {RoleLocal, "root"}, {RoleWorker, "worker"}, {RoleWitness, "witness"}, {RoleAgent, "agent of a manager"},
	{"state", "state"}, {"scheduler", "scheduler"}, {"health", "health"}, {"vault", "vault"}, {"mesh", "mesh"},
}

const own = "own"

// may are those of the connections that the broker lets publish or subscribe on a subject that has a * for an id: for a worker,
// a witness, a joiner or a user its own.
func may(pattern string, publish bool) string {
	var out []string
	all := true
	for _, c := range connections {
		p := Permissions(c.role, own, here)
		allowed := true
		if p != nil {
			rules := p.Subscribe
			if publish {
				rules = p.Publish
			}
			allowed = rules == nil || permitted(rules.Allow, pattern) || publish && permitted(rules.Allow, subject.ByAnybody(pattern))
			if rules != nil && allowed && matches(rules.Deny, spelled(pattern)) {
				allowed = false
			}
		}
		if !allowed {
			all = false
			continue
		}
		out = append(out, c.called)
	}
	if all {
		return "everybody"
	}
	if len(out) == 0 {
		return "managers' brokers"
	}
	services := []string{"state", "scheduler", "health", "vault", "mesh"}
	if !slices.ContainsFunc(services, func(s string) bool { return !slices.Contains(out, s) }) {
		out = append(slices.DeleteFunc(out, func(s string) bool { return slices.Contains(services, s) }), "services")
	}
	return strings.Join(out, ", ")
}

// spelled is a subject of a pattern, as the connection with id own would use it.
func spelled(pattern string) string {
	return strings.ReplaceAll(strings.ReplaceAll(pattern, "*", own), ">", own)
}

// permitted reports whether one of the rules lets the connection with id own do what the pattern is of. An empty list is no rule.
func permitted(allow []string, pattern string) bool {
	if len(allow) == 0 {
		return true
	}
	if pattern == "" {
		return false
	}
	by := strings.TrimSuffix(spelled(pattern), own+"."+own) + own + "." + here // in its own name, from its address
	return matches(allow, spelled(pattern)) || strings.HasSuffix(spelled(pattern), own+"."+own) && matches(allow, by)
}

func shown(pattern, place string) string {
	return "`" + strings.Replace(strings.Replace(pattern, "*", "<"+place+">", 1), "*", "<channel>", 1) + "`"
}

// pageOfRequests is of the verbs.
func pageOfRequests(b *strings.Builder) {
	b.WriteString("### Requests\n\n| subject | may ask | answers | request → reply | effect |\n|---|---|---|---|---|\n")
	for _, v := range api.All() {
		place := "node"
		if v.Callers == api.Joiners {
			place = "joiner"
		}
		on := v.Service
		if strings.HasPrefix(v.Subject, "skep.v1.node.") {
			on += " on the node"
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s → %s | %s |\n", shown(v.Subject, place), may(v.Subject, true), on, v.Request.Descriptor().Name(), v.Reply.Descriptor().Name(), v.Does())
	}
}

// pageOfPublished is of what nobody answers.
func pageOfPublished(b *strings.Builder) {
	b.WriteString("\n### Published\n\n| subject | message | published by | may publish | may subscribe |\n|---|---|---|---|---|\n")
	for _, a := range api.Announcements {
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s |\n", shown(a.Subject, "node"), a.Message.Descriptor().Name(), a.From, may(a.Subject, true), may(a.Subject, false))
	}
	for _, c := range []struct{ channel, from, message string }{
		{stream.In, "who opened the stream", "bytes"}, {"cctl", "who opened the stream", "StreamControl"},
		{stream.Out, "node-agent, secrets-vault", "bytes"}, {stream.Err, "node-agent", "bytes"}, {"ctl", "node-agent, secrets-vault", "StreamControl"},
	} {
		s := subject.IO("*", "*", c.channel)
		fmt.Fprintf(b, "| `%s` | %s | %s | %s | %s |\n", shownIO(s), c.message, c.from, may(s, true), may(s, false))
	}
	fmt.Fprintf(b, "| `$SRV.<verb>…` | NATS' micro services | who looks in | %s | %s |\n", may("$SRV.>", true), may("$SRV.>", false))
}

func shownIO(s string) string {
	return strings.Replace(strings.Replace(s, "*", "<node>", 1), "*", "<session>", 1)
}

// pageOfHeaders is of those of requests, replies and events.
func pageOfHeaders(b *strings.Builder) {
	b.WriteString("\n### Headers\n\n| header | on | says |\n|---|---|---|\n")
	for _, h := range [][3]string{
		{rpc.HeaderContentType, "all", "`" + rpc.TypeProto + "` or `" + rpc.TypeJSON + "`: how the body is encoded; a request without it is JSON when it begins with `{`"},
		{rpc.HeaderAccept, "requests", "how the reply shall be encoded, if not as the request is"},
		{rpc.HeaderType, "replies, events", "the message's full name"},
		{rpc.HeaderTrace, "requests", "an id that the services' logs show with it"},
		{rpc.HeaderRequest, "requests", "the id of a request that \"writes once\""},
		{rpc.HeaderAgain, "requests", "it was asked before, under that id"},
		{rpc.HeaderStale, "replies", "the managers have no leader: this is as it was then, milliseconds since 1970"},
		{micro.ErrorCodeHeader, "replies", "it was refused: `not_found`, `conflict`, `invalid`, `unavailable`, `denied`, `exhausted`, `locked`, `internal`"},
		{micro.ErrorHeader, "replies", "what was being done to what, and what to do next"},
		{stream.HeaderSession, "requests to `.open`", "the id of the byte stream, which its subjects have"},
		{stream.HeaderWindow, "requests to `.open`, replies", "how many bytes may be sent ahead"},
		{"Nats-Msg-Id", "events", "an id of the event: of those with the same the streams keep one"},
		{"Nats-Sequence", "`push`, `net`", "the revision of the key it was re-published from"},
		{"KV-Operation", "`net`", "the key was deleted"},
	} {
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", h[0], h[1], h[2])
	}
}

func pageOfStreams(b *strings.Builder) {
	b.WriteString("\n### Streams\n\n| stream | holds | of each subject | kept for | at most | is read outside by |\n|---|---|---|---|---|---|\n")
	for _, c := range kv.Streams(1) {
		holds := "`" + strings.Join(c.Subjects, "`, `") + "`"
		if len(c.Subjects) > 3 {
			holds = "[events](events.md)"
		}
		each, kept, most := "all", "ever", "the disk"
		if c.MaxMsgsPerSubject > 0 {
			each = fmt.Sprintf("last %d", c.MaxMsgsPerSubject)
		}
		if c.MaxAge > 0 {
			kept = fmt.Sprintf("%d days", c.MaxAge/(24*time.Hour))
		}
		if c.MaxBytes > 0 {
			most = fmt.Sprintf("%d KiB", c.MaxBytes>>10)
			if c.MaxBytes >= 1<<20 {
				most = fmt.Sprintf("%d MiB", c.MaxBytes>>20)
			}
		}
		if c.Storage != jetstream.FileStorage {
			most += " of memory"
		}
		fmt.Fprintf(b, "| `%s` | %s | %s | %s | %s | %s |\n", c.Name, holds, each, kept, most, outside(c.Name))
	}
}

// outside are the people and nodes that may ask JetStream about a stream, in any way.
func outside(name string) string {
	var out []string
	for _, c := range connections {
		p := Permissions(c.role, own, here)
		if isService(c.role) || p == nil {
			continue
		}
		for _, on := range []string{"STREAM.INFO." + name, "STREAM.MSG.GET." + name, "DIRECT.GET." + name, "DIRECT.GET." + name + ".x", "CONSUMER.CREATE." + name, "CONSUMER.CREATE." + name + ".x.y"} {
			if s := "$JS.API." + on; matches(p.Publish.Allow, s) && !matches(p.Publish.Deny, s) {
				out = append(out, c.called)
				break
			}
		}
	}
	if len(out) == 0 {
		return "nobody"
	}
	return strings.Join(out, ", ")
}

func pageOfKeys(b *strings.Builder) {
	b.WriteString("\n### Keys\n\nA key's subject is `$KV.<bucket>.<key>`. Only its writer may publish there.\n\n| bucket | key | record | writer |\n|---|---|---|---|\n")
	for _, f := range keys.All() {
		bucket, value := "`"+string(f.Bucket)+"`", f.Text
		if f.Bucket == "" {
			bucket = "each"
		}
		if f.Value != nil {
			value = strings.TrimSuffix(string(f.Value.Descriptor().Name())+": "+f.Text, ": ")
		}
		fmt.Fprintf(b, "| %s | `%s` | %s | %s |\n", bucket, f.Form, value, f.Writer)
	}
}

// docs/subjects.md shows what there is to hear and to say, and who may, as the broker has it.
func TestThePageShowsTheSubjects(t *testing.T) {
	bus := run(t, lone(t, pkitest.NewCA(t), id.New()))
	nc, err := bus.InProcess("state")
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	var b strings.Builder
	pageOfRequests(&b)
	pageOfPublished(&b)
	pageOfHeaders(&b)
	fmt.Fprintf(&b, "\n### Limits\n\n| | bytes |\n|---|---|\n| a message | %d |\n| a message of a joiner | %d |\n| a record | %d |\n| a frame of a byte stream | %d |\n| what is sent ahead in a byte stream | %d |\n",
		nc.MaxPayload(), joinPayload, kv.MaxValue, stream.MaxFrame, stream.Window)
	pageOfStreams(&b)
	pageOfKeys(&b)
	doctest.TableOf(t, "subjects.md", "services/bus", b.String())
}

// What the page says of a few subjects is what it has to.
func TestWhoMay(t *testing.T) {
	for _, c := range []struct {
		pattern string
		publish bool
		who     string
	}{
		{api.ServiceList.Subject(), true, "viewer, operator, admin, root, services"},
		{api.ServiceCreate.Subject(), true, "operator, admin, root, services"},
		{api.TokenGet.Subject(), true, "admin, root, services"},
		{api.NodeAdmit.Subject(), true, "services"},
		{api.StateStatus.Subject(), true, "worker, agent of a manager, services"},
		{api.Join.Subject(), true, "joiner"},
		{api.Epoch.Subject(), true, "joiner, services"},
		{api.NodeSelf.Subject(), true, "services"},
		{subject.AllHeartbeats, true, "worker, witness, agent of a manager, services"},
		{subject.AllHeartbeats, false, "operator, admin, root, services"},
		{subject.AllEvents, true, "services"},
		{subject.AllEvents, false, "operator, admin, root, services"},
		{subject.AllSeen, false, "viewer, services"},
		{subject.Bucket("spec").Key("service.*"), true, "state"},
		{subject.Bucket("secret").Key("object.*"), true, "vault"},
		{subject.Bucket("secret").Key("object.*"), false, "services"},
	} {
		if got := may(c.pattern, c.publish); got != c.who {
			t.Errorf("%s, publish %v: %s, want %s", c.pattern, c.publish, got, c.who)
		}
	}
	if got := outside("KV_" + string(subject.Secret)); got != "nobody" {
		t.Errorf("the vault's bucket is read by %s", got)
	}
}
