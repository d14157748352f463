package bus

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"skep.dev/libs/id"
	"skep.dev/libs/kv"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
	"skep.dev/libs/subject"
)

// TestReading: who reads the store by its API gets what he may see into his own inbox, and with it no way to write, to say
// something to somebody else, or to take what is another's.
func TestReading(t *testing.T) {
	ca := pkitest.NewCA(t)
	b := run(t, lone(t, ca, id.New()))
	inside, err := b.connect(t.Context(), string(RoleManager))
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	js, err := jetstream.New(inside)
	if err != nil {
		t.Fatal(err)
	}
	if err := kv.Ensure(t.Context(), js, 1); err != nil {
		t.Fatal(err)
	}
	lease := kv.Open(js, subject.Lease)
	for i := range 3 {
		if _, err := lease.Put(t.Context(), fmt.Sprint("k", i), []byte("held")); err != nil {
			t.Fatal(err)
		}
	}
	everything, err := inside.SubscribeSync(">")
	if err != nil {
		t.Fatal(err)
	}
	defer everything.Unsubscribe() //nolint:errcheck // the connection ends

	ada := dial(t, b, userStore(t, ca, "ada", pki.Admin))
	oz := dial(t, b, userStore(t, ca, "oz", pki.Operator))
	ask := func(p *peer, who, op, body string) string {
		t.Helper()
		m, err := p.Request(subject.Store("user-"+who)+"."+op, []byte(body), patience)
		if err != nil {
			t.Fatalf("%s: %v", op, err)
		}
		return string(m.Data)
	}
	create := func(p *peer, who, name, config string) string {
		t.Helper()
		return ask(p, who, "CONSUMER.CREATE.KV_lease."+name, `{"stream_name":"KV_lease","config":{"name":"`+name+`","deliver_policy":"all","ack_policy":"explicit"`+config+`}}`)
	}

	// What a consumer is, whatever was asked.
	var made server.JSApiConsumerCreateResponse
	if err := json.Unmarshal([]byte(create(ada, "ada", "a", `,"durable_name":"a","num_replicas":3,"inactive_threshold":360000000000000,"max_waiting":5000,"metadata":{"skep.reader":"user-oz"}`)), &made); err != nil || made.Error != nil {
		t.Fatalf("%v %v", err, made.Error)
	}
	if c := made.Config; c.AckPolicy != server.AckNone || c.Replicas != 1 || !c.MemoryStorage || c.Durable != "" || c.InactiveThreshold != readIdle || c.MaxWaiting != readWaiting || c.MaxRequestBatch != readBatch || c.Metadata[readerIs] != "user-ada" {
		t.Errorf("a consumer is made as asked: %+v", c)
	}

	for what, c := range map[string]struct{ op, body, says string }{
		"messages to a key":        {"CONSUMER.CREATE.KV_lease.b", `{"stream_name":"KV_lease","config":{"name":"b","deliver_subject":"$KV.spec.cluster"}}`, "inboxes of your own"},
		"messages to somebody":     {"CONSUMER.CREATE.KV_lease.b", `{"stream_name":"KV_lease","config":{"name":"b","deliver_subject":"` + subject.Inbox("user-oz") + `.x"}}`, "inboxes of your own"},
		"another stream":           {"CONSUMER.CREATE.KV_lease.b", `{"stream_name":"KV_secret","config":{"name":"b"}}`, "another stream"},
		"the vault":                {"CONSUMER.CREATE.KV_secret.b", `{"stream_name":"KV_secret","config":{"name":"b"}}`, "not to be read"},
		"a value of the vault":     {"STREAM.MSG.GET.KV_value", `{"seq":1}`, "not to be read"},
		"a direct read":            {"DIRECT.GET.KV_secret.$KV.secret.ca", ``, "not to be read"},
		"a name with a wildcard":   {"CONSUMER.CREATE.KV_lease.b", `{"stream_name":"KV_lease","config":{"name":">"}}`, "letters, digits"},
		"a filter with a line end": {"CONSUMER.CREATE.KV_lease.b", `{"stream_name":"KV_lease","config":{"name":"b","filter_subject":"x 1\r\ny\r\nPUB $KV.spec.cluster 0\r\n"}}`, "a filter is a subject"},
		"no JSON":                  {"CONSUMER.CREATE.KV_lease.b", `x`, "no JSON"},
		"too long":                 {"STREAM.INFO.KV_lease", strings.Repeat(" ", readBody+1), "too long"},
		"deleting":                 {"STREAM.DELETE.KV_lease", ``, "only read here"},
		"purging":                  {"STREAM.PURGE.KV_lease", ``, "only read here"},
		"deleting a message":       {"STREAM.MSG.DELETE.KV_lease", `{"seq":1}`, "only read here"},
		"updating":                 {"STREAM.UPDATE.KV_lease", `{}`, "only read here"},
		"restoring":                {"STREAM.RESTORE.KV_lease", `{}`, "only read here"},
		"a snapshot":               {"STREAM.SNAPSHOT.KV_lease", `{"deliver_subject":"$KV.spec.cluster"}`, "only read here"},
		"stepping down":            {"STREAM.LEADER.STEPDOWN.KV_lease", ``, "only read here"},
		"pausing":                  {"CONSUMER.PAUSE.KV_lease.a", `{}`, "only read here"},
	} {
		if got := ask(ada, "ada", c.op, c.body); !strings.Contains(got, `"error"`) || !strings.Contains(got, c.says) {
			t.Errorf("%s: %s", what, got)
		}
	}
	// Nobody's consumer is another's, nor may anybody ask in another's name or without rights.
	for _, op := range []string{"CONSUMER.INFO", "CONSUMER.DELETE", "CONSUMER.MSG.NEXT"} {
		if got := ask(oz, "oz", op+".KV_lease.a", ""); !strings.Contains(got, "consumer not found") {
			t.Errorf("%s of another's: %s", op, got)
		}
	}
	if got := create(oz, "oz", "a", `,"filter_subject":""`); !strings.Contains(got, `"error"`) {
		t.Errorf("another's consumer is changed: %s", got)
	}
	oz.mustNotPublish(subject.Store("user-ada")+".STREAM.INFO.KV_lease", nil)
	dial(t, b, userStore(t, ca, "vi", pki.Viewer)).mustNotPublish(subject.Store("user-vi")+".STREAM.INFO.KV_lease", nil)
	if got := ask(ada, "ada", "STREAM.NAMES", ""); !strings.Contains(got, `"KV_lease"`) || strings.Contains(got, "KV_secret") || strings.Contains(got, "KV_value") {
		t.Errorf("streams: %s", got)
	}

	// Answers, messages and what is asked for by an acknowledgement go nowhere but to the asker.
	for {
		if _, err := everything.NextMsg(100 * time.Millisecond); err != nil {
			break
		}
	}
	const elsewhere = "$KV.spec.cluster"
	for _, m := range []*nats.Msg{
		{Subject: subject.Store("user-ada") + ".STREAM.INFO.KV_lease", Reply: elsewhere},
		{Subject: subject.Store("user-ada") + ".CONSUMER.MSG.NEXT.KV_lease.a", Reply: elsewhere, Data: []byte(`{"batch":1}`)},
		{Subject: subject.Store("user-ada") + ".CONSUMER.MSG.NEXT.KV_lease.a", Reply: subject.Inbox("user-oz") + ".x", Data: []byte(`{"batch":1}`)},
		{Subject: "$JS.ACK.KV_lease.a.1.1.1.1.0", Reply: elsewhere, Data: []byte("+NXT")},
	} {
		if err := ada.PublishMsg(m); err != nil {
			t.Fatal(err)
		}
	}
	if ada.refused() {
		t.Errorf("%v", ada.LastError())
	}
	got, err := ada.Request(subject.Store("user-ada")+".CONSUMER.MSG.NEXT.KV_lease.a", []byte(`{"batch":1}`), patience)
	if err != nil || got.Subject != "$KV.lease.k0" || string(got.Data) != "held" {
		t.Fatalf("the consumer's first message: %v %+v", err, got)
	}
	for {
		m, err := everything.NextMsg(200 * time.Millisecond)
		if err != nil {
			break
		}
		if m.Subject == elsewhere || strings.HasPrefix(m.Subject, subject.Inbox("user-oz")) {
			t.Errorf("something was sent to %s: %s", m.Subject, m.Data)
		}
	}

	// A flood.
	refused := 0
	for i := range 30 {
		if got := create(ada, "ada", fmt.Sprint("f", i), ""); strings.Contains(got, askedTooFast) {
			refused++
		}
	}
	if refused < 10 {
		t.Errorf("of 30 consumers in a row %d are refused", refused)
	}
}
