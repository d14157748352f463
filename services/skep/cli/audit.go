package cli

import (
	"context"
	"sort"
	"strings"

	"github.com/spf13/cobra"

	"skep.dev/libs/api"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/render"
)

func (a *app) auditCommand() *cobra.Command {
	var req skepv1.ListAuditRequest
	var since, until, format string
	var asJSON, noTrunc bool
	var most int
	cmd := &cobra.Command{Use: "audit [OPTIONS]", Short: "Show who did what, and from where", Args: noArgs,
		Long: "Show who did what, and from where: the changes people made and the values they read, as far back as events are kept (a week).\n" +
			"Who is a user's certificate, or root on a manager; from where is the address the manager saw. Neither can be chosen by who asks.\n" +
			"Viewers may not see it.",
		Example: "  skep audit --since 24h\n  skep audit --user alice --kind secret\n  skep audit -n 20 --format '{{.Time}} {{.Actor}} {{.Verb}} {{.Name}}'\n  skep audit --json --since 1h | jq .address",
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if most < 0 {
				return Usagef("--last must not be below 0")
			}
			if req.Since, err = parseWhen("since", since, a.Now()); err != nil {
				return err
			}
			if req.Until, err = parseWhen("until", until, a.Now()); err != nil {
				return err
			}
			list, err := a.audit(cmd.Context(), &req, most)
			if err != nil {
				return err
			}
			if asJSON {
				for _, e := range list {
					if err := render.JSONLine(a.Out, e); err != nil {
						return err
					}
				}
				return nil
			}
			t := auditTable(list)
			t.Wide = noTrunc
			return t.Print(a.Out, format, false)
		}}
	f := cmd.Flags()
	f.StringVar(&req.User, "user", "", "Only what this user did: a name, or root")
	f.StringVar(&req.Kind, "kind", "", "Only what was done to one kind of object: service, network, node, cluster, secret, config, user, task, image")
	f.StringVar(&since, "since", "", "Begin at a time, or a duration ago (10m)")
	f.StringVar(&until, "until", "", "End at a time")
	f.IntVarP(&most, "last", "n", 0, "Only the newest `N` (default all)")
	f.StringVar(&format, "format", "", `"table", "table TEMPLATE", "json" or a Go template`)
	f.BoolVar(&asJSON, "json", false, "Print one event of skep's own a line, as JSON (a stable form)")
	f.BoolVar(&noTrunc, "no-trunc", false, "Do not cut long values short")
	completeWords(cmd, "kind", "service", "stack", "network", "node", "cluster", "secret", "config", "user", "task", "image")
	_ = cmd.RegisterFlagCompletionFunc("user", a.issuedNames)
	return cmd
}

// audit asks for all pages and keeps the newest of what is on them.
func (a *app) audit(ctx context.Context, req *skepv1.ListAuditRequest, most int) ([]*skepv1.Event, error) {
	var list []*skepv1.Event
	for after := ""; ; {
		req.Page = &skepv1.Page{After: after}
		r, err := call(ctx, a, api.AuditList, req)
		if err != nil {
			return nil, err
		}
		list = append(list, r.Events...)
		if most > 0 && len(list) > most {
			list = append([]*skepv1.Event(nil), list[len(list)-most:]...)
		}
		if after = r.Next; after == "" {
			return list, nil
		}
	}
}

// who is an actor as people say it. Only root on a manager is "root".
func who(actor string) string {
	if name, user := strings.CutPrefix(actor, "user-"); user && name != "root" {
		return name
	}
	return actor
}

func auditTable(list []*skepv1.Event) *render.Table {
	t := &render.Table{Key: "ID", Columns: []render.Column{{Field: "Time", Header: "TIME"}, {Field: "Actor", Header: "WHO"}, {Field: "Address", Header: "FROM"}, {Field: "Verb", Header: "VERB"},
		{Field: "Kind", Header: "KIND"}, {Field: "Name", Header: "NAME"}, {Field: "ID", Header: "ID"}, {Field: "Details", Header: "DETAILS"}},
		Default: "{{.Time}}\t{{.Actor}}\t{{.Address}}\t{{.Verb}}\t{{.Kind}}\t{{.Name}}\t{{.Details}}"}
	for _, e := range list {
		var more []string
		for k, v := range e.Attributes {
			if k != "name" {
				more = append(more, k+"="+v)
			}
		}
		sort.Strings(more)
		name := e.Name
		if name == "" {
			name = e.Id
		}
		t.Rows = append(t.Rows, render.Row{
			"Time": e.GetTime().AsTime().Local().Format("2006-01-02 15:04:05"), "Actor": who(e.Actor), "Address": e.Address, "Verb": e.Verb,
			"Kind": e.Kind, "Name": name, "ID": e.Id, "Details": strings.Join(more, " "),
		})
	}
	return t
}
