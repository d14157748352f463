package cli

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/api"
	"skep.dev/libs/backup"
	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/conn"
	"skep.dev/services/skep/cli/doctor"
	"skep.dev/services/skep/cli/render"
)

// shelf is where the scheduled backups of this machine lie.
func (a *app) shelf() *backup.Shelf {
	if a.runDir != "" && a.runDir != conn.DefaultRunDir {
		return &backup.Shelf{} // a node of another place: what lies there is named by its path
	}
	return backup.ShelfIn(conn.DefaultDataDir)
}

// kept asks every manager what scheduled backups lie there.
func (a *app) kept(ctx context.Context, nodes []*skepv1.Node) []doctor.NodeBackups {
	var out []doctor.NodeBackups
	for _, n := range nodes {
		if n.GetManager() != nil {
			out = append(out, doctor.NodeBackups{Node: n})
		}
	}
	var wg sync.WaitGroup
	for i := range out {
		wg.Go(func() {
			out[i].Reply, out[i].Err = say(ctx, a, api.VaultBackups.At(out[i].Node.GetMeta().GetId()), &skepv1.Empty{})
		})
	}
	wg.Wait()
	return out
}

func (a *app) listScheduled(ctx context.Context, l *listFlags) error {
	var answers []doctor.NodeBackups
	nodes, err := a.managersOrNone(ctx)
	switch {
	case err == nil:
		answers = a.kept(impatient(ctx), nodes)
	default:
		here, lerr := a.shelf().List()
		if lerr != nil || len(here) == 0 {
			return err
		}
		a.warnf("the managers cannot be asked (%v): these lie on this machine", err)
		r := &skepv1.KeptBackupsReply{Hostname: "this machine"}
		for _, k := range here {
			r.Backups = append(r.Backups, &skepv1.KeptBackup{Name: k.Name, Size: k.Size, Due: timestamppb.New(k.Due), Header: k.Header})
		}
		answers = []doctor.NodeBackups{{Reply: r}}
	}
	now := a.Now()
	t := &render.Table{Key: "Name", Columns: []render.Column{{Field: "Name", Header: "NAME"}, {Field: "Node", Header: "NODE"}, {Field: "Age", Header: "AGE"}, {Field: "Size", Header: "SIZE"},
		{Field: "Made", Header: "MADE"}, {Field: "Due", Header: "DUE"}, {Field: "Cluster", Header: "CLUSTER"}, {Field: "Version", Header: "VERSION"}, {Field: "Opens", Header: "OPENS WITH"}},
		Default: "{{.Name}}\t{{.Node}}\t{{.Age}}\t{{.Size}}\t{{.Opens}}"}
	type row struct {
		due time.Time
		render.Row
	}
	var rows []row
	var replies []*skepv1.KeptBackupsReply
	for _, m := range answers {
		name := cmp.Or(m.Reply.GetHostname(), render.Hostname(m.Node))
		if m.Err != nil {
			if fault.Is(m.Err, fault.CodeDenied) {
				return m.Err
			}
			a.warnf("%s does not say what backups it keeps: %v", name, m.Err)
			continue
		}
		replies = append(replies, m.Reply)
		if m.Reply.Failed != "" {
			a.warnf("%s failed to make the newest one %s: %s", name, render.Ago(m.Reply.FailedAt.AsTime(), now), m.Reply.Failed)
		}
		for _, b := range m.Reply.Backups {
			h := b.GetHeader()
			rows = append(rows, row{b.Due.AsTime(), render.Row{"Name": b.Name, "Node": name, "Age": render.Age(now.Sub(h.GetMadeAt().AsTime())), "Size": render.Bytes(int64(b.Size)),
				"Made": h.GetMadeAt().AsTime().UTC().Format(time.DateTime + " MST"), "Due": b.Due.AsTime().UTC().Format(time.DateTime + " MST"),
				"Cluster": h.GetClusterId(), "Version": h.GetSkepVersion(), "Opens": backup.Opener(h)}})
		}
	}
	slices.SortStableFunc(rows, func(a, b row) int { return cmp.Or(b.due.Compare(a.due), cmp.Compare(a.Row["Node"], b.Row["Node"])) })
	for _, r := range rows {
		t.Rows = append(t.Rows, r.Row)
	}
	return printList(a, l, replies, t)
}

// managersOrNone is the nodes, or why nobody can be asked.
func (a *app) managersOrNone(ctx context.Context) ([]*skepv1.Node, error) {
	if _, err := a.conn(ctx); err != nil {
		return nil, err
	}
	return a.nodes(impatient(ctx))
}
