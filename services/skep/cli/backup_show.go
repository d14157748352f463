package cli

import (
	"cmp"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/backup"
	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/render"
)

func (a *app) printHeader(h *skepv1.BackupHeader) {
	a.printf("Cluster:   %s\nMade:      %s by manager %s (%s), for %s\nVersion:   %s, form %d\nOpens:     %s\nHolds:     %s\n",
		h.ClusterId, h.MadeAt.AsTime().UTC().Format(time.DateTime+" MST"), cmp.Or(h.MadeOn, "-"), h.MadeBy, cmp.Or(h.AskedBy, "-"),
		cmp.Or(h.SkepVersion, "-"), h.Format, backup.Opener(h), counted(h))
	if h.Findings > 0 {
		a.printf("Findings:  %d things in the store did not fit together when it was made\n", h.Findings)
	}
}

func (a *app) jsonHeader(h *skepv1.BackupHeader) error { return render.JSONObject(a.Out, h) }

func (a *app) backupList() *cobra.Command {
	var l listFlags
	cmd := &cobra.Command{Use: "ls [OPTIONS] [DIR]", Aliases: []string{"list"}, Short: "List the scheduled backups of every manager, or the backups in a folder", Args: cobra.MaximumNArgs(1),
		Long: "List the scheduled backups that lie on the managers (skep swarm update --backup-schedule), the newest first. On a machine that is no node, those\n" +
			"that lie on it. With a folder, the backups in that folder of this machine.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				return a.listFolder(&l, args[0])
			}
			return a.listScheduled(cmd.Context(), &l)
		}}
	l.add(cmd, "names")
	return cmd
}

func (a *app) listFolder(l *listFlags, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fault.NotFound("%v", err)
	}
	t := &render.Table{Key: "File", Columns: []render.Column{{Field: "File", Header: "FILE"}, {Field: "Made", Header: "MADE"}, {Field: "Cluster", Header: "CLUSTER"}, {Field: "Version", Header: "VERSION"},
		{Field: "Size", Header: "SIZE"}, {Field: "Opens", Header: "OPENS WITH"}},
		Default: "{{.File}}\t{{.Made}}\t{{.Cluster}}\t{{.Version}}\t{{.Size}}\t{{.Opens}}"}
	var all []*skepv1.BackupHeader
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		h, size := backup.Peek(filepath.Join(dir, e.Name()))
		if h == nil {
			continue // something else lies there as well
		}
		all = append(all, h)
		t.Rows = append(t.Rows, render.Row{"File": e.Name(), "Made": h.MadeAt.AsTime().UTC().Format(time.DateTime + " MST"), "Cluster": h.ClusterId,
			"Version": h.SkepVersion, "Size": strconv.FormatUint(size, 10), "Opens": backup.Opener(h)})
	}
	return printList(a, l, all, t)
}

func (a *app) backupUnknown() *cobra.Command {
	var l listFlags
	cmd := &cobra.Command{Use: "unknown [OPTIONS]", Short: "List what runs that a restored cluster does not know of", Args: noArgs,
		Long: "List tasks that nodes run and the cluster has no record of. After a restore these are what was begun after the backup; they run on until\n" +
			"`skep backup settle` ends that.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := call(cmd.Context(), a, api.TaskUnknown, &skepv1.ListUnknownTasksRequest{})
			if err != nil {
				return err
			}
			t := &render.Table{Key: "ID", Columns: []render.Column{{Field: "ID", Header: "ID"}, {Field: "Node", Header: "NODE"}, {Field: "Container", Header: "CONTAINER"}, {Field: "Started", Header: "STARTED"}},
				Default: "{{.ID}}\t{{.Node}}\t{{.Container}}\t{{.Started}}"}
			for _, u := range r.Tasks {
				t.Rows = append(t.Rows, render.Row{"ID": u.TaskId, "Node": cmp.Or(u.Hostname, u.NodeId), "Container": u.ContainerId, "Started": time.UnixMilli(u.StartedUnixMs).UTC().Format(time.DateTime + " MST")})
			}
			if err := printList(a, &l, r.Tasks, t); err != nil {
				return err
			}
			if r.More > 0 {
				a.tellf("… and %d more.\n", r.More)
			}
			return nil
		}}
	l.add(cmd, "ids")
	return cmd
}

func (a *app) backupSettle() *cobra.Command {
	var stop bool
	cmd := &cobra.Command{Use: "settle [OPTIONS]", Short: "End the time after a restore in which nothing unknown is stopped", Args: noArgs,
		Long: "End the time after a restore. Until then nodes keep what they run and the backup does not know of, and nodes that have not come back are\n" +
			"waited for. From then on they are as everywhere: what is unknown is stopped (which needs --stop-unknown), and what nodes ran that are down runs elsewhere.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			r, err := call(ctx, a, api.TaskUnknown, &skepv1.ListUnknownTasksRequest{})
			if err != nil {
				return err
			}
			if !r.Kept {
				return fault.Conflict("the cluster was not restored, or that was settled already")
			}
			if n := uint64(len(r.Tasks)) + r.More; n > 0 && !stop {
				return fault.Conflict("%d tasks run that the cluster does not know of (skep backup unknown): they end with this, say so with --stop-unknown", n)
			}
			if err := a.settleRestored(ctx); err != nil {
				return err
			}
			a.printf("Settled.\n")
			if len(r.Missing) > 0 {
				slices.Sort(r.Missing)
				a.warnf("nodes that have not come back count as down now, and their tasks run elsewhere: %s", strings.Join(r.Missing, ", "))
			}
			return nil
		}}
	cmd.Flags().BoolVar(&stop, "stop-unknown", false, "Stop what runs that the cluster does not know of")
	return cmd
}

func (a *app) settleRestored(ctx context.Context) error {
	c, err := a.cluster(ctx)
	if err != nil {
		return err
	}
	s := proto.CloneOf(c.GetSpec())
	s.Restored = false
	_, err = call(ctx, a, api.ClusterUpdate, &skepv1.UpdateClusterRequest{Version: c.GetMeta().GetVersion(), Spec: s})
	return err
}
