package cli

import (
	"cmp"
	"context"
	"slices"

	"github.com/spf13/cobra"

	"skep.dev/libs/api"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/render"
)

func (a *app) contextIssued() *cobra.Command {
	var format string
	var quiet bool
	cmd := &cobra.Command{Use: "issued [OPTIONS]", Short: "List the certificates of users elsewhere", Args: noArgs,
		Long: "List the certificates the cluster has made for users elsewhere and that have not expired: whose, by whom, and which were revoked.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := a.issued(cmd.Context())
			if err != nil {
				return err
			}
			t := &render.Table{Key: "Serial", Columns: []render.Column{{Field: "Serial", Header: "SERIAL"}, {Field: "Name", Header: "NAME"}, {Field: "Role", Header: "ROLE"}, {Field: "Issued", Header: "ISSUED"}, {Field: "IssuedBy", Header: "BY"}, {Field: "Expires", Header: "EXPIRES"}, {Field: "Revoked", Header: "REVOKED"}},
				Default: "{{.Serial}}\t{{.Name}}\t{{.Role}}\t{{.Issued}}\t{{.IssuedBy}}\t{{.Expires}}\t{{.Revoked}}"}
			for _, c := range list {
				row := render.Row{"Serial": c.Serial, "Name": cmp.Or(c.Name, "?"), "Role": cmp.Or(c.Role, "?"), "Issued": "?", "IssuedBy": cmp.Or(c.IssuedBy, "?"), "Expires": c.NotAfter.AsTime().Local().Format("2006-01-02 15:04 MST"), "Revoked": ""}
				if c.IssuedAt != nil {
					row["Issued"] = render.Ago(c.IssuedAt.AsTime(), a.Now())
				}
				if c.RevokedAt != nil {
					row["Revoked"] = render.Ago(c.RevokedAt.AsTime(), a.Now()) + " by " + c.RevokedBy
				}
				t.Rows = append(t.Rows, row)
			}
			return t.Print(a.Out, format, quiet)
		}}
	cmd.Flags().StringVar(&format, "format", "", `"table", "table TEMPLATE", "json" or a Go template`)
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Show only serial numbers")
	return cmd
}

func (a *app) contextRevoke() *cobra.Command {
	return &cobra.Command{Use: "revoke NAME|SERIAL [NAME|SERIAL...]", Short: "Refuse certificates of users elsewhere from now on", Args: minArgs(1), ValidArgsFunction: a.issuedNames,
		Long: "Refuse certificates of users elsewhere from now on, and end their connections. NAME is all certificates of that user, SERIAL is one;\n`skep context issued` lists them. Nothing takes it back: `skep context issue` makes a new certificate.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(cmd.Context(), args, func(ref string) error { return a.revoke(cmd.Context(), ref) })
		}}
}

// warnOfHeirs names the certificates that revoked users made for others: a thief's way to stay.
func (a *app) warnOfHeirs(ctx context.Context, revoked []*skepv1.UserCertificate) {
	names := map[string]bool{}
	for _, c := range revoked {
		if c.Name != "" {
			names["user-"+c.Name] = true
		}
	}
	if len(names) == 0 {
		return
	}
	list, err := a.issued(ctx)
	if err != nil {
		// Which may be as it should: whoever revokes his own certificate is cut off.
		a.tellf("Which certificates they made for others cannot be looked up: %v\n", err)
		return
	}
	for _, c := range list {
		if names[c.IssuedBy] && c.RevokedAt == nil {
			a.warnf("%s made a certificate that is still good: %s of %s", c.IssuedBy, c.Serial, c.Name)
		}
	}
}

func (a *app) issued(ctx context.Context) ([]*skepv1.UserCertificate, error) {
	r, err := call(ctx, a, api.UserIssued, &skepv1.Empty{})
	return r.Certificates, err
}

// issuedNames completes users whose certificates can be revoked.
func (a *app) issuedNames(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.completion(func(ctx context.Context) ([]string, error) {
		list, err := a.issued(ctx)
		var out []string
		for _, c := range list {
			if c.RevokedAt == nil && c.Name != "" && !slices.Contains(out, c.Name) {
				out = append(out, c.Name)
			}
		}
		return out, err
	}, args)
}
