package kv

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"skep.dev/libs/subject"
)

// MaxValue bounds one value: NATS' default payload limit.
const MaxValue = 1 << 20

// EventAge is how long events are kept.
const EventAge = 7 * 24 * time.Hour

// leaseBytes makes the blocks of the leases' stream the smallest there are, 32 kB. Leases are renewed three times a second for
// as long as a manager runs, and the broker holds the block it writes to, with what was written over in it. It is also how much
// all leases together may take: there are a handful, 200 bytes each.
const leaseBytes = 100 << 10

// Streams is the configuration of every stream of skep at the given number of replicas.
func Streams(replicas int) []jetstream.StreamConfig {
	var out []jetstream.StreamConfig
	for _, b := range subject.Buckets {
		c := jetstream.StreamConfig{
			Name:               b.Stream(),
			Description:        "skep " + string(b),
			Subjects:           []string{b.Key(">")},
			Storage:            jetstream.FileStorage,
			Replicas:           replicas,
			MaxMsgsPerSubject:  1,
			MaxMsgSize:         MaxValue,
			Discard:            jetstream.DiscardNew,
			DenyDelete:         true,
			AllowDirect:        true,
			AllowMsgTTL:        true,
			AllowAtomicPublish: true,
			Duplicates:         2 * time.Minute,
			MaxBytes:           -1,
			MaxMsgs:            -1,
			MaxConsumers:       -1,
		}
		switch b {
		case subject.Task:
			// Agents listen on core NATS: 5,000 listeners cost 1 MB, 5,000 consumers most of the throughput.
			c.RePublish = &jetstream.RePublish{Source: b.Key(">"), Destination: subject.PushPrefix + ">"}
		case subject.Endpoint:
			// Records have two tokens. The fence and the checkpoint have one: they are nothing to the nodes, all of which listen.
			c.RePublish = &jetstream.RePublish{Source: b.Key("*.*"), Destination: subject.Net("{{wildcard(1)}}", "{{wildcard(2)}}")}
		case subject.Lease:
			c.SubjectDeleteMarkerTTL = time.Minute
			// nats-server asks for rollup where it writes delete markers itself; nobody but managers may publish here.
			c.AllowRollup = true
			c.MaxBytes = leaseBytes
		}
		out = append(out, c)
	}
	// In this order: what the second stream takes, an older version's first one has to let go of before.
	for _, name := range []string{subject.EventStream, subject.NodeEventStream} {
		out = append(out, jetstream.StreamConfig{
			Name:         name,
			Description:  "skep events",
			Subjects:     subject.EventSubjects(name, ""),
			Storage:      jetstream.FileStorage,
			Replicas:     replicas,
			MaxAge:       EventAge,
			MaxBytes:     256 << 20,
			MaxMsgs:      -1,
			MaxConsumers: -1,
			Discard:      jetstream.DiscardOld,
			DenyDelete:   true,
			AllowDirect:  true,
			Duplicates:   2 * time.Minute,
			SubjectTransform: &jetstream.SubjectTransformConfig{
				Source: subject.Event("*", "*", "*"), Destination: subject.KeptEvent("{{wildcard(1)}}", "{{wildcard(3)}}"),
			},
		})
	}
	return out
}

// Ensure creates every stream that is missing and adopts those that exist. It runs at every start of a manager:
// a stream found on disk without its meta entry is deleted by the server 30 s later unless it is created again.
// The replica count of an existing stream is left alone: membership changes it, one stream at a time.
func Ensure(ctx context.Context, js jetstream.JetStream, replicas int) error {
	for _, c := range Streams(replicas) {
		if err := ensure(ctx, js, c); err != nil {
			return fmt.Errorf("create stream %s: %w", c.Name, err)
		}
	}
	return nil
}

// Await returns once every stream exists, and says so when it has to wait: a service whose process starts before the
// broker's has nothing to do until then.
func Await(ctx context.Context, js jetstream.JetStream, log *zap.Logger) error {
	for said := false; ; {
		err := errors.New("not connected")
		if js.Conn().IsConnected() {
			err = present(ctx, js)
		}
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		if !said {
			log.Info("waiting for the broker and its streams", zap.Error(err))
			said = true
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func present(ctx context.Context, js jetstream.JetStream) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for _, c := range Streams(1) {
		if _, err := js.Stream(ctx, c.Name); err != nil {
			return fmt.Errorf("look for stream %s: %w", c.Name, err)
		}
	}
	return nil
}

func ensure(ctx context.Context, js jetstream.JetStream, c jetstream.StreamConfig) error {
	// Without a meta leader nobody answers at all, and the request is lost: ask again, soon at first.
	for patience := 250 * time.Millisecond; ; patience = min(2*patience, 4*time.Second) {
		try, cancel := context.WithTimeout(ctx, patience)
		_, err := js.CreateStream(try, c)
		cancel()
		if err == nil {
			return nil
		}
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			s, err := js.Stream(ctx, c.Name)
			if err != nil {
				return err
			}
			have := s.CachedInfo().Config
			if !differs(have, c) {
				return nil
			}
			c.Replicas = have.Replicas
			_, err = js.UpdateStream(ctx, c)
			return err
		}
		if ctx.Err() != nil || !transient(err) {
			return err
		}
		// The meta group has no leader yet; it says so at once, so pace ourselves.
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// differs looks at what an older version may have made otherwise.
func differs(have, want jetstream.StreamConfig) bool {
	return have.AllowAtomicPublish != want.AllowAtomicPublish || have.AllowMsgTTL != want.AllowMsgTTL ||
		have.MaxMsgSize != want.MaxMsgSize || have.MaxBytes != want.MaxBytes || have.MaxAge != want.MaxAge ||
		(have.RePublish == nil) != (want.RePublish == nil) || have.RePublish != nil && *have.RePublish != *want.RePublish ||
		(have.SubjectTransform == nil) != (want.SubjectTransform == nil) || have.SubjectTransform != nil && *have.SubjectTransform != *want.SubjectTransform ||
		!slices.Equal(have.Subjects, want.Subjects)
}

const errNoPeers = 10005

func transient(err error) bool {
	var api *jetstream.APIError
	if errors.As(err, &api) {
		return api.Code == 503 || api.ErrorCode == errNoPeers // the other servers are still joining
	}
	return true
}
