package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"skep.dev/libs/api"
	"skep.dev/libs/pki"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/render"
)

func (a *app) userCommand() *cobra.Command {
	return group("user", "Manage who may use the cluster from elsewhere", a.userCreate(), a.userList(), a.userRemove())
}

func (a *app) userCreate() *cobra.Command {
	i := issue{expiry: 90 * 24 * time.Hour}
	var renew bool
	cmd := &cobra.Command{Use: "create [OPTIONS] NAME --role admin|operator|viewer", Short: "Make a user", Args: exactArgs(1), ValidArgsFunction: cobra.NoFileCompletions,
		Long: "Make a user: a certificate, written with its key and the managers' addresses to one file that only you can read.\n" +
			"On the user's machine `skep context import FILE` takes it in. The key is made here and is in that file alone.\n\n" +
			"admin may do everything. operator may do everything but change nodes, the cluster, its CA, users, join tokens and the unlock key.\n" +
			"viewer may list and inspect, without values of environment variables, and of secrets and configs the names alone.\n\n" +
			"A name that has a certificate which is still good is refused. --renew makes another one beside it, for a user whose\n" +
			"certificate ends soon; `skep user rm SERIAL` ends the former one.",
		Example: "  skep user create alice --role operator\n  skep user create ci --role operator --expiry 7d -o - | ssh ci@runner skep context import -\n  skep user create alice --role operator --renew -o alice-2027.skepcontext",
		RunE: func(cmd *cobra.Command, args []string) error {
			if i.role == "" {
				return &usageError{cmd, "--role is required: " + strings.Join(pki.UserRoles, ", ")}
			}
			i.first = !renew
			return a.issueTo(cmd.Context(), args[0], i)
		}}
	i.flags(cmd)
	f := cmd.Flags()
	f.Var((*lifetime)(&i.expiry), "expiry", "How long the certificate is valid: 90d, 12h")
	f.BoolVar(&renew, "renew", false, "Make another certificate although the user has one that is still good")
	return cmd
}

// lifetime is a duration that may be written in days.
type lifetime time.Duration

func (l *lifetime) String() string {
	const day = 24 * time.Hour
	if d := time.Duration(*l); d%day != 0 {
		return d.String()
	}
	return strconv.Itoa(int(time.Duration(*l)/day)) + "d"
}

func (*lifetime) Type() string { return "duration" }

func (l *lifetime) Set(s string) error {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		if err != nil {
			return fmt.Errorf("%q is no number of days: write 90d", s)
		}
		*l = lifetime(time.Duration(n) * 24 * time.Hour)
		return nil
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf("%q is no duration: write 90d or 12h", s)
	}
	*l = lifetime(d)
	return nil
}

// Status of a user's certificate.
const (
	certGood    = "good"
	certRevoked = "revoked"
	certExpired = "expired"
)

func (a *app) certStatus(c *skepv1.UserCertificate) string {
	switch {
	case c.RevokedAt != nil:
		return certRevoked
	case c.NotAfter.AsTime().Before(a.Now()):
		return certExpired
	}
	return certGood
}

func (a *app) userList() *cobra.Command {
	var l listFlags
	cmd := &cobra.Command{Use: "ls [OPTIONS]", Aliases: []string{"list"}, Short: "List users and their certificates", Args: noArgs,
		Long:    "List users and their certificates: those that have not expired, also the revoked ones.",
		Example: "  skep user ls\n  skep user ls --filter status=good --format '{{.Name}} {{.Role}} {{.Ends}}'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			filters, err := l.filters.parse()
			if err != nil {
				return err
			}
			list, err := a.issued(cmd.Context())
			if err != nil {
				return err
			}
			list = slices.DeleteFunc(list, func(c *skepv1.UserCertificate) bool { return !a.userFits(c, filters) })
			return printList(a, &l, list, a.userTable(list))
		}}
	l.add(cmd, "names", userFilters...)
	return cmd
}

var userFilters = []string{"name", "role", "status", "serial"}

func (a *app) userFits(c *skepv1.UserCertificate, filters []*skepv1.Filter) bool {
	for _, f := range filters {
		have := map[string]string{"name": c.Name, "role": c.Role, "status": a.certStatus(c), "serial": c.Serial}[f.Key]
		if !slices.ContainsFunc(f.Values, func(want string) bool {
			return have == want || (f.Key == "name" || f.Key == "serial") && strings.HasPrefix(have, want)
		}) {
			return false
		}
	}
	return true
}

func (a *app) userTable(list []*skepv1.UserCertificate) *render.Table {
	t := &render.Table{Key: "Name", Columns: []render.Column{{Field: "Name", Header: "NAME"}, {Field: "Role", Header: "ROLE"}, {Field: "Serial", Header: "SERIAL"}, {Field: "Issued", Header: "ISSUED"},
		{Field: "IssuedBy", Header: "BY"}, {Field: "IssuedFrom", Header: "FROM"}, {Field: "Ends", Header: "ENDS"}, {Field: "Status", Header: "STATUS"}},
		Default: "{{.Name}}\t{{.Role}}\t{{.Serial}}\t{{.Issued}}\t{{.Ends}}\t{{.Status}}"}
	for _, c := range list {
		row := render.Row{"Name": cmp.Or(c.Name, "?"), "Role": cmp.Or(c.Role, "?"), "Serial": c.Serial, "Issued": "?", "IssuedBy": cmp.Or(c.IssuedBy, "?"), "IssuedFrom": cmp.Or(c.IssuedFrom, "?"),
			"Ends": c.NotAfter.AsTime().Local().Format("2006-01-02 15:04 MST"), "Status": a.certStatus(c)}
		if c.IssuedAt != nil {
			row["Issued"] = render.Ago(c.IssuedAt.AsTime(), a.Now())
		}
		if c.RevokedAt != nil {
			row["Status"] += " " + render.Ago(c.RevokedAt.AsTime(), a.Now()) + " by " + c.RevokedBy
			if c.RevokedFrom != "" {
				row["Status"] += " from " + c.RevokedFrom
			}
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

func (a *app) userRemove() *cobra.Command {
	return &cobra.Command{Use: "rm NAME|SERIAL [NAME|SERIAL...]", Aliases: []string{"remove"}, Short: "End users: their connections at once, their certificates for good", Args: minArgs(1), ValidArgsFunction: a.issuedNames,
		Long: "End users: their connections at once, their certificates for good. NAME is all certificates of that user, SERIAL is one;\n" +
			"`skep user ls` lists them. Nothing takes it back: `skep user create` makes a new certificate, also of the same name.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(cmd.Context(), args, func(ref string) error { return a.revoke(cmd.Context(), ref) })
		}}
}

// revoke revokes a user's certificates, or one, and prints which.
func (a *app) revoke(ctx context.Context, ref string) error {
	r, err := call(ctx, a, api.UserRevoke, &skepv1.RevokeUserRequest{Ref: ref})
	if err != nil {
		return err
	}
	for _, c := range r.Revoked {
		a.printf("%s\n", c.Serial)
	}
	if len(r.Revoked) == 0 {
		a.tellf("Revoked before: %s.\n", ref)
	}
	a.warnOfHeirs(ctx, r.Revoked)
	return nil
}
