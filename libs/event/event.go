// Package event publishes what happened, as protojson, to skep.v1.event.<kind>.<id>.<verb>: the EVENTS stream
// keeps it for a week and `nats sub 'skep.v1.event.>'` shows it live. Viewers hear it on skep.v1.seen.<kind>.<id>.<verb>, without
// who did it and from where.
package event

import (
	"context"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/types/known/timestamppb"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/id"
	"skep.dev/libs/mask"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
)

// By is e with who asked for the change in work under ctx, and from where, unless e says who did it.
func By(ctx context.Context, e *skepv1.Event) *skepv1.Event {
	if e.Actor == "" {
		a := rpc.ActorOf(ctx)
		e.Actor, e.Address = a.Name, a.Address
	}
	return e
}

// Publish sends one event without waiting for the stream's acknowledgement: an event tells of a change that is
// committed already and must never hold it up.
func Publish(nc *nats.Conn, e *skepv1.Event) error { return PublishOnce(nc, e, id.New()) }

// PublishOnce is Publish for a change that more than one may tell of, a leader and the one after it: of events with the
// same key, less than two minutes apart, the stream keeps the first. Who listens live hears each.
func PublishOnce(nc *nats.Conn, e *skepv1.Event, key string) error {
	if e.Kind == "" || e.Id == "" || e.Verb == "" || strings.ContainsAny(e.Kind+e.Id+e.Verb, ". *>") {
		return fmt.Errorf("publish event: kind %q, id %q and verb %q must be single subject tokens", e.Kind, e.Id, e.Verb)
	}
	if _, known := Of(e.Kind, e.Verb); !known {
		return fmt.Errorf("publish event: kind %s, verb %s is none of the list: add it to libs/event", e.Kind, e.Verb)
	}
	if e.Time == nil {
		e.Time = timestamppb.Now()
	}
	if err := publish(nc, subject.Event(e.Kind, e.Id, e.Verb), e, key); err != nil {
		return err
	}
	return publish(nc, subject.Seen(e.Kind, e.Id, e.Verb), mask.ForViewer(e), key)
}

func publish(nc *nats.Conn, subj string, e *skepv1.Event, key string) error {
	body, err := rpc.Encode(e, true)
	if err != nil {
		return fmt.Errorf("encode event %s: %w", subj, err)
	}
	m := nats.NewMsg(subj)
	m.Data = body
	m.Header.Set(rpc.HeaderContentType, rpc.TypeJSON)
	m.Header.Set(rpc.HeaderType, "skep.v1.Event")
	m.Header.Set("Nats-Msg-Id", key)
	if err := nc.PublishMsg(m); err != nil {
		return fmt.Errorf("publish event %s: %w", subj, err)
	}
	return nil
}
