package cli

import (
	"context"

	"github.com/spf13/cobra"

	"skep.dev/libs/api"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/render"
)

// claimCommands are the sub-commands of `volume` about who may write a volume with a single writer.
func (a *app) claimCommands() []*cobra.Command {
	return []*cobra.Command{a.volumeClaims(), a.volumeRelease()}
}

// claims lists all claims.
func (a *app) claims(ctx context.Context, f ...*skepv1.Filter) ([]*skepv1.VolumeClaim, error) {
	return pages(func(p *skepv1.Page) ([]*skepv1.VolumeClaim, string, error) {
		r, err := call(ctx, a, api.VolumeClaims, &skepv1.ListClaimsRequest{Filters: f, Page: p})
		return r.GetClaims(), r.GetNext(), err
	})
}

func (a *app) volumeClaims() *cobra.Command {
	var l listFlags
	cmd := &cobra.Command{Use: "claims [OPTIONS]", Short: "List which node may write which volume", Args: noArgs,
		Long: "List which node may write which volume.\n\nA volume with a single writer is held by one node: by default those of plug-ins whose volumes are the same everywhere, and all that are " +
			"mounted with volume-sharing=none or onewriter. Its state is \"in use\"; \"releasing\" while the node has not said yet that it unmounted it; \"fenced\"; or \"lost\" when the node is down or was removed, so that nobody can say: " +
			"skep node fence, or skep volume release.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := l.filters.parse()
			if err != nil {
				return err
			}
			list, err := a.claims(cmd.Context(), f...)
			if err != nil {
				return err
			}
			return printList(a, &l, list, render.Claims(list, a.Now()))
		}}
	l.add(cmd, "the names", "name", "driver", "node", "service")
	return cmd
}

func (a *app) volumeRelease() *cobra.Command {
	r := &skepv1.ReleaseClaimRequest{}
	cmd := &cobra.Command{Use: "release [OPTIONS] VOLUME", Short: "Say that nobody writes a volume any more", Args: exactArgs(1),
		Long: "Say that nobody writes a volume any more, so that another node may have it.\n\nThis is for what nobody else can say: the node that held the volume was removed, or wiped. " +
			"Make sure that its machine is off, or that its storage was detached: two writers destroy a volume.",
		RunE: func(cmd *cobra.Command, args []string) error {
			r.Name = args[0]
			reply, err := call(cmd.Context(), a, api.VolumeRelease, r)
			if err != nil {
				return err
			}
			c := reply.GetClaim()
			a.printf("%s (was held by %s)\n", c.GetName(), c.GetNodeHostname())
			return nil
		}}
	f := cmd.Flags()
	f.StringVarP(&r.Driver, "driver", "d", "", "The volume's driver, where several have one of that name")
	f.BoolVarP(&r.Force, "force", "f", false, "Although its node is up and says that it holds it")
	return cmd
}
