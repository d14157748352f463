package bus

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"skep.dev/libs/limit"
	"skep.dev/libs/subject"
)

// People read the store with tools for JetStream (nats stream view, nats kv watch) below subject.Store, not below $JS.API: who
// may make a consumer or ask for a message there names the subject that it is sent to, and the server sends with its own rights.
// Here a request is looked at before it is passed on to $JS.API. What comes back goes from the server to the asker.
//
//   - The streams are those of subject.Readable; nothing is passed on that writes.
//   - Answers and messages go to the asker's own inbox, or nothing is passed on.
//   - A consumer is made of what the asker may say (reading.consumer), with a limit on everything else: it is kept in memory by
//     one server, ends soon after nobody reads, acknowledges nothing and carries the name of who made it, for whom alone it is.
const (
	readBody     = 16 << 10
	readPlaces   = 64 // requests that are looked at, at a time
	readWithin   = 5 * time.Second
	readIdle     = 5 * time.Minute // after so long without a reader a consumer ends
	readBatch    = 256
	readWaiting  = 16
	readExpires  = 30 * time.Second
	readBeat     = time.Second
	readerIs     = "skep.reader" // the metadata of a consumer that names who made it
	storeAPI     = server.JSApiPrefix + "."
	askedTooFast = "too many requests: wait a moment"
)

// Refusals, in the numbers of the API; each is given its text.
var (
	badRequest    = server.ApiError{Code: http.StatusBadRequest, ErrCode: uint16(server.JSBadRequestErr)}
	refused       = server.ApiError{Code: http.StatusForbidden, ErrCode: uint16(server.JSNotEnabledForAccountErr)} // what tools show as one
	noStream      = server.ApiError{Code: http.StatusNotFound, ErrCode: uint16(server.JSStreamNotFoundErr)}
	noConsumer    = server.ApiError{Code: http.StatusNotFound, ErrCode: uint16(server.JSConsumerNotFoundErr)}
	tooMany       = server.ApiError{Code: http.StatusTooManyRequests, ErrCode: uint16(server.JSMaximumConsumersLimitErr)}
	notResponding = server.ApiError{Code: http.StatusServiceUnavailable, ErrCode: uint16(server.JSClusterNotAvailErr)}
)

// reading passes on what people ask of the store.
type reading struct {
	b        *Bus
	nc       *nats.Conn
	js       jetstream.JetStream
	readable []string
	asks     *limit.PerKey // of each person
	makes    *limit.PerKey // consumers, of each person
	places   chan struct{}
}

func (b *Bus) openReading(ctx context.Context) (*reading, error) {
	nc, err := b.connect(ctx, string(RoleManager))
	if err != nil {
		return nil, err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		nc.Close()
		return nil, err
	}
	r := &reading{
		b: b, nc: nc, js: js, readable: subject.Readable(), places: make(chan struct{}, readPlaces),
		asks: limit.New(50, 200), makes: limit.New(rate.Every(5*time.Second), 20),
	}
	sub, err := nc.QueueSubscribe(subject.AllStore, subject.Queue, r.take)
	if err == nil {
		err = sub.SetPendingLimits(1024, 4<<20)
	}
	if err == nil {
		err = nc.FlushTimeout(admitWithin)
	}
	if err != nil {
		nc.Close()
		return nil, err
	}
	return r, nil
}

func (r *reading) close() { r.nc.Close() }

// take looks at a request. What has no reply, or one that is not the asker's own, gets no answer.
func (r *reading) take(m *nats.Msg) {
	who, op, ok := subject.StoreAsked(m.Subject)
	if !ok || !subject.MayHear(m.Subject, m.Reply) {
		return
	}
	if !r.asks.Allow(who, time.Now()) {
		r.refuse(m, tooMany, askedTooFast)
		return
	}
	select {
	case r.places <- struct{}{}:
	default:
		r.refuse(m, tooMany, askedTooFast)
		return
	}
	go func() {
		defer func() { <-r.places }()
		r.pass(m, who, op)
	}()
}

// pass passes a request on to the API, or refuses it.
func (r *reading) pass(m *nats.Msg, who, op string) {
	if len(m.Data) > readBody {
		r.refuse(m, badRequest, "the request is too long")
		return
	}
	verb, rest := cutVerb(op)
	stream, rest, _ := strings.Cut(rest, ".")
	switch verb {
	case "STREAM.NAMES", "STREAM.LIST":
		r.list(m, op)
		return
	case "":
		r.refuse(m, refused, "the store is only read here: "+op+" is not for people; skep's own commands change things")
		return
	}
	if !slices.Contains(r.readable, stream) {
		r.refuse(m, noStream, "stream not found, or not to be read: "+strings.Join(r.readable, ", ")+" are")
		return
	}
	data := m.Data
	switch verb {
	case "CONSUMER.CREATE", "CONSUMER.DURABLE.CREATE":
		if !r.makes.Allow(who, time.Now()) {
			r.refuse(m, tooMany, askedTooFast)
			return
		}
		var err error
		if data, op, err = r.consumer(m, who, stream); err != nil {
			r.refuse(m, badRequest, err.Error())
			return
		}
	case "CONSUMER.INFO", "CONSUMER.DELETE", "CONSUMER.MSG.NEXT":
		if err := r.theirs(who, stream, rest); err != nil {
			if !errors.Is(err, jetstream.ErrConsumerNotFound) {
				r.refuse(m, notResponding, "the store does not answer: "+err.Error())
				return
			}
			r.refuse(m, noConsumer, "consumer not found")
			return
		}
	}
	if err := r.nc.PublishMsg(&nats.Msg{Subject: storeAPI + op, Reply: m.Reply, Data: data}); err != nil {
		r.b.slips.Warn("pass on what somebody reads", zap.String("user", who), zap.Error(err))
	}
}

// passed are the operations that are passed on, those that begin like others first.
var passed = []string{
	"STREAM.NAMES", "STREAM.LIST", "STREAM.INFO", "STREAM.MSG.GET", "DIRECT.GET", "CONSUMER.CREATE", "CONSUMER.DURABLE.CREATE", "CONSUMER.INFO", "CONSUMER.DELETE", "CONSUMER.MSG.NEXT",
}

// cutVerb takes an operation apart: what is asked, "" for what is not passed on, and the tokens behind it.
func cutVerb(op string) (verb, rest string) {
	for _, p := range passed {
		if op == p {
			return p, ""
		}
		if rest, ok := strings.CutPrefix(op, p+"."); ok {
			return p, rest
		}
	}
	return "", ""
}

// consumer makes the request for a consumer anew, of what the asker may say about it, and the operation that it is passed on to.
func (r *reading) consumer(m *nats.Msg, who, stream string) ([]byte, string, error) {
	var asked server.CreateConsumerRequest
	if err := json.Unmarshal(m.Data, &asked); err != nil {
		return nil, "", errors.New("the request is no JSON of a consumer")
	}
	in := asked.Config
	name := in.Name
	if name == "" {
		name = in.Durable
	}
	switch {
	case asked.Stream != stream:
		return nil, "", errors.New("the consumer is of another stream than the subject says")
	case strings.ContainsAny(name, ".*> \t\r\n/\\"):
		return nil, "", errors.New("a consumer's name is of letters, digits, - and _")
	case strings.ContainsAny(in.FilterSubject, " \t\r\n"): // it becomes a part of the subject that is published on
		return nil, "", errors.New("a filter is a subject")
	case in.DeliverSubject != "" && !subject.MayHear(m.Subject, in.DeliverSubject):
		return nil, "", errors.New("messages go to inboxes of your own only")
	}
	out := server.ConsumerConfig{
		Name: name, Description: in.Description, DeliverPolicy: in.DeliverPolicy, OptStartSeq: in.OptStartSeq, OptStartTime: in.OptStartTime,
		FilterSubject: in.FilterSubject, FilterSubjects: in.FilterSubjects, ReplayPolicy: server.ReplayInstant, HeadersOnly: in.HeadersOnly,
		DeliverSubject: in.DeliverSubject, AckPolicy: server.AckNone, InactiveThreshold: readIdle, Replicas: 1, MemoryStorage: true,
		Metadata: map[string]string{readerIs: who},
	}
	if out.DeliverSubject == "" {
		out.MaxWaiting, out.MaxRequestBatch, out.MaxRequestExpires = readWaiting, readBatch, readExpires
	} else if in.Heartbeat > 0 {
		out.Heartbeat = max(in.Heartbeat, readBeat)
	}
	op := "CONSUMER.CREATE." + stream
	if name != "" { // else the server gives it one
		op += "." + name
		if out.FilterSubject != "" {
			op += "." + out.FilterSubject
		}
	}
	data, err := json.Marshal(&server.CreateConsumerRequest{Stream: stream, Config: out, Action: server.ActionCreate})
	return data, op, err
}

// theirs is nil for a consumer that the asker made.
func (r *reading) theirs(who, stream, name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), readWithin)
	defer cancel()
	c, err := r.js.Consumer(ctx, stream, name)
	switch {
	case errors.Is(err, jetstream.ErrInvalidConsumerName):
		return jetstream.ErrConsumerNotFound
	case err != nil:
		return err
	case c.CachedInfo().Config.Metadata[readerIs] != who:
		return jetstream.ErrConsumerNotFound
	}
	return nil
}

// list answers with those streams that may be read.
func (r *reading) list(m *nats.Msg, op string) {
	answer, err := r.nc.Request(storeAPI+op, m.Data, readWithin)
	if err != nil {
		r.refuse(m, notResponding, "the store does not answer: "+err.Error())
		return
	}
	var all map[string]json.RawMessage
	var streams []json.RawMessage
	if json.Unmarshal(answer.Data, &all) != nil || all["streams"] != nil && json.Unmarshal(all["streams"], &streams) != nil {
		r.refuse(m, notResponding, "the store's answer is not understood")
		return
	}
	streams = slices.DeleteFunc(streams, func(raw json.RawMessage) bool {
		var name string
		var info struct {
			Config struct {
				Name string `json:"name"`
			} `json:"config"`
		}
		if json.Unmarshal(raw, &name) != nil && json.Unmarshal(raw, &info) == nil {
			name = info.Config.Name
		}
		return !slices.Contains(r.readable, name)
	})
	if all["streams"] != nil {
		if all["streams"], err = json.Marshal(streams); err == nil {
			all["total"], err = json.Marshal(len(streams))
		}
	}
	data, merr := json.Marshal(all)
	if err = errors.Join(err, merr); err == nil {
		err = r.nc.Publish(m.Reply, data)
	}
	if err != nil {
		r.b.slips.Warn("list streams for somebody", zap.Error(err))
	}
}

// refuse answers as the API does.
func (r *reading) refuse(m *nats.Msg, e server.ApiError, text string) {
	e.Description = text
	data, err := json.Marshal(server.ApiResponse{Type: "io.nats.jetstream.api.v1.error_response", Error: &e})
	if err == nil {
		err = r.nc.Publish(m.Reply, data)
	}
	if err != nil {
		r.b.slips.Warn("refuse what somebody reads", zap.Error(err))
	}
}
