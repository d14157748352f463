package cli

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/render"
)

func (a *app) eventsCommand() *cobra.Command {
	var filters filterFlag
	var since, until, format string
	var asJSON bool
	cmd := &cobra.Command{Use: "events [OPTIONS]", Short: "Show what happens in the cluster, as it happens", Args: noArgs,
		Long: "Show what happens in the cluster, as it happens; with --since, what happened before too.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := filters.parse()
			if err != nil {
				return err
			}
			req := &skepv1.ListEventsRequest{Filters: f}
			if req.Since, err = parseWhen("since", since, a.Now()); err != nil {
				return err
			}
			if req.Until, err = parseWhen("until", until, a.Now()); err != nil {
				return err
			}
			show, err := a.eventPrinter(format, asJSON)
			if err != nil {
				return err
			}
			return a.events(cmd.Context(), req, show)
		}}
	f := cmd.Flags()
	filters.add(cmd, eventFilters()...)
	f.StringVar(&since, "since", "", "Begin at a time, or a duration ago (10m)")
	f.StringVar(&until, "until", "", "End at a time")
	f.StringVar(&format, "format", "", `A Go template, or "json"`)
	f.BoolVar(&asJSON, "json", false, "Print one JSON object a line (a stable form)")
	return cmd
}

// eventFilters: type and kind, event and verb are the same.
func eventFilters() []string {
	kinds := strings.Join(subject.EventKinds(), "|")
	return []string{"type=" + kinds, "id", "name", "event", "service", "node", "label", "kind=" + kinds, "verb"}
}

func (a *app) eventPrinter(format string, asJSON bool) (func(*skepv1.Event) error, error) {
	if asJSON {
		return func(e *skepv1.Event) error { return render.JSONLine(a.Out, e) }, nil
	}
	if format != "" {
		return render.EventPrinter(a.Out, format)
	}
	return func(e *skepv1.Event) error {
		a.printf("%s\n", eventLine(e))
		return nil
	}, nil
}

// eventLine is Docker's: time, type, action, id, and the attributes in brackets.
func eventLine(e *skepv1.Event) string {
	var attrs []string
	for k, v := range render.EventAttributes(e) {
		attrs = append(attrs, k+"="+v)
	}
	sort.Strings(attrs)
	line := fmt.Sprintf("%s %s %s %s", e.GetTime().AsTime().Local().Format("2006-01-02T15:04:05.000000000Z07:00"), e.Kind, e.Verb, e.Id)
	if len(attrs) > 0 {
		line += " (" + strings.Join(attrs, ", ") + ")"
	}
	if e.Message != "" {
		line += ": " + e.Message
	}
	return line
}

func (a *app) events(ctx context.Context, req *skepv1.ListEventsRequest, show func(*skepv1.Event) error) error {
	nc, err := a.conn(ctx)
	if err != nil {
		return err
	}
	now := a.Now()
	past := req.Until != nil && !req.Until.AsTime().After(now)
	live := make(chan *skepv1.Event, 4096)
	dropped := make(chan struct{}, 1)
	back := nc.StatusChanged(nats.CONNECTED)
	defer nc.RemoveStatusListener(back)
	if !past {
		// Listening begins before the past is read, so that nothing falls in between.
		on := subject.AllEvents
		if subject.IsViewerInbox(nc.Opts.InboxPrefix + ".") {
			on = subject.AllSeen
		}
		sub, err := nc.Subscribe(on, func(m *nats.Msg) {
			e := &skepv1.Event{}
			if (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(m.Data, e) != nil {
				return // not an event of ours
			}
			select {
			case live <- e:
			default:
				select {
				case dropped <- struct{}{}:
				default:
				}
			}
		})
		if err != nil {
			return fmt.Errorf("listen to events: %w", err)
		}
		defer func() { _ = sub.Unsubscribe() }() // the connection may be gone
		fctx, cancel := context.WithTimeout(ctx, callTimeout)
		err = nc.FlushWithContext(fctx)
		cancel()
		if err != nil {
			return fmt.Errorf("listen to events: %w", err)
		}
	}
	shown := newShown(now, show)
	if req.Since != nil || past {
		if err := a.pastEvents(ctx, req, shown.tell); err != nil {
			return err
		}
	}
	if past {
		return nil
	}
	// The broker ends the connection of a user who is removed, and does not take it back.
	gone := nc.StatusChanged(nats.CLOSED)
	defer nc.RemoveStatusListener(gone)
	if nc.IsClosed() {
		return cutOff(nc)
	}
	var end, late <-chan time.Time
	if req.Until != nil {
		t := time.NewTimer(req.Until.AsTime().Sub(now))
		defer t.Stop()
		end = t.C
	}
	missed := func() error {
		r := proto.CloneOf(req)
		r.Since = timestamppb.New(shown.until().Add(-eventSlack))
		r.Until = nil
		if err := a.pastEvents(ctx, r, shown.again); err != nil && shown.err == nil && ctx.Err() == nil {
			a.warnf("the connection to the manager was lost for a while, and what happened meanwhile is not shown: %v; --since shows it", err)
		}
		return shown.err
	}
	for {
		select {
		case <-ctx.Done():
			return &Failure{Code: ExitCancelled}
		case <-end:
			return nil
		case <-gone:
			return cutOff(nc)
		case <-back:
			// Who is not connected hears nothing. What was on its way to the streams then is looked for once more.
			if err := missed(); err != nil {
				return err
			}
			late = time.After(eventLate)
		case <-late:
			if err := missed(); err != nil {
				return err
			}
			late = nil
		case <-dropped:
			a.warnf("events come faster than they are read: some are missing here; --since shows them")
		case e := <-live:
			if !matchEvent(e, req.Filters) {
				continue
			}
			if err := shown.tell(e); err != nil {
				return err
			}
		}
	}
}

// pastEvents tells of the events that the managers keep.
func (a *app) pastEvents(ctx context.Context, req *skepv1.ListEventsRequest, tell func(*skepv1.Event) error) error {
	for after := ""; ; {
		req.Page = &skepv1.Page{After: after}
		r, err := call(ctx, a, api.EventList, req)
		if err != nil {
			return err
		}
		for _, e := range r.Events {
			if err := tell(e); err != nil {
				return err
			}
		}
		if after = r.Next; after == "" {
			return nil
		}
	}
}

// cutOff says why a connection ended for good.
func cutOff(nc *nats.Conn) error {
	err := nc.LastError()
	if errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrAuthExpired) || errors.Is(err, nats.ErrAuthRevoked) {
		return fault.Denied("the manager ended the connection and refuses this context's certificate (%v); on a manager, `skep user create` makes another", err)
	}
	return fault.Unavailable("the connection to the manager is closed: %v", err)
}

// matchEvent applies the filters the state service applies to the past.
func matchEvent(e *skepv1.Event, filters []*skepv1.Filter) bool {
	for _, f := range filters {
		ok := false
		for _, v := range f.Values {
			switch f.Key {
			case "kind", "type":
				ok = strings.EqualFold(e.Kind, v)
			case "id":
				ok = strings.HasPrefix(e.Id, v)
			case "name":
				ok = strings.HasPrefix(e.Name, v)
			case "verb", "event":
				ok = e.Verb == v
			case "service", "node":
				ok = e.Kind == f.Key && (strings.HasPrefix(e.Id, v) || e.Name == v) || e.Attributes[f.Key] == v || e.Attributes[f.Key+".id"] == v || e.Attributes[f.Key+".name"] == v
			case "label":
				k, want, has := strings.Cut(v, "=")
				got, found := e.Attributes[k]
				ok = found && (!has || got == want)
			}
			if ok {
				break
			}
		}
		if !ok {
			return false
		}
	}
	return true
}
