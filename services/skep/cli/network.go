package cli

import (
	"bufio"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/render"
	"skep.dev/services/skep/cli/specflag"
)

func (a *app) networkCommand() *cobra.Command {
	return group("network", "Manage networks",
		a.networkCreate(), a.networkList(), a.networkInspect(), a.networkRemove(), a.networkPrune(),
		a.networkRefused("connect", "--network-add"), a.networkRefused("disconnect", "--network-rm"))
}

func (a *app) networkCreate() *cobra.Command {
	var flags *specflag.NetworkFlags
	cmd := &cobra.Command{Use: "create [OPTIONS] NETWORK", Short: "Create a network that services of all nodes can join", Args: exactArgs(1),
		Long: "Create a network that services of all nodes can join.\n\nServices join with `skep service create --network NETWORK` and reach one another by name. " +
			"A network costs a node nothing before a task of it runs there.",
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := flags.Spec(args[0])
			if err != nil {
				return err
			}
			// The same rules as the state service's, before anything is sent.
			if err := spec.ValidateNetwork(s, nil); err != nil {
				return &Failure{ExitUsage, err}
			}
			r, err := call(cmd.Context(), a, api.NetworkCreate, &skepv1.CreateNetworkRequest{Spec: s})
			if err != nil {
				return err
			}
			a.warnings(r.Warnings)
			a.printf("%s\n", r.Network.GetMeta().GetId())
			return nil
		}}
	flags = specflag.Network(cmd.Flags())
	completeWords(cmd, "driver", spec.DriverOverlay)
	completeWords(cmd, "scope", "swarm")
	completeWords(cmd, "opt", spec.OptEncrypted, spec.OptMTU+"=", spec.OptVXLANID+"=")
	return cmd
}

func (a *app) networkList() *cobra.Command {
	var l listFlags
	cmd := &cobra.Command{Use: "ls [OPTIONS]", Aliases: []string{"list"}, Short: "List networks", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := l.filters.parse()
			if err != nil {
				return err
			}
			list, err := a.networks(cmd.Context(), f...)
			if err != nil {
				return err
			}
			return printList(a, &l, list, render.Networks(list, l.noTrunc))
		}}
	l.add(cmd, "the ids", "id", "name", "driver", "label", "scope=swarm|local|global", "type=builtin|custom", "dangling=true|false|1|0")
	return cmd
}

// meshPatience is how long `network inspect` waits for what the mesh alone knows when nobody asked for it.
const meshPatience = 3 * time.Second

func (a *app) networkInspect() *cobra.Command {
	var i inspectFlags
	var verbose bool
	cmd := &cobra.Command{Use: "inspect [OPTIONS] NETWORK [NETWORK...]", Short: "Show networks in full", Args: minArgs(1), ValidArgsFunction: a.completeNetworks,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			if verbose && i.json {
				return Usagef("--verbose adds to Docker's form: leave out --json, or ask for --format json")
			}
			mesh := map[string]*skepv1.MeshNetworkReply{}
			list, err := gather(a, ctx, args, func(ref string) (*skepv1.Network, error) {
				n, err := a.network(ctx, ref)
				if err != nil || i.json || n.GetScope() != "swarm" {
					return n, err
				}
				mesh[n.GetMeta().GetId()], err = a.meshOf(ctx, n, verbose)
				return n, err
			})
			if a.nc != nil {
				docker := func(n *skepv1.Network) any {
					return render.DockerNetwork(n, mesh[n.GetMeta().GetId()], verbose)
				}
				if perr := inspect(a, &i, list, docker, nil); perr != nil {
					return perr
				}
			}
			return err
		}}
	i.add(cmd, false)
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "Show also the services and tasks on it, as the mesh knows them")
	return cmd
}

// meshOf asks the mesh who is on a network. Unless it must know, the network is shown without that.
func (a *app) meshOf(ctx context.Context, n *skepv1.Network, must bool) (*skepv1.MeshNetworkReply, error) {
	id := n.GetMeta().GetId()
	if id == spec.NetworkIngress {
		id = ""
	}
	ask := ctx
	if !must {
		var cancel context.CancelFunc
		ask, cancel = context.WithTimeout(impatient(ctx), meshPatience)
		defer cancel()
	}
	r, err := call(ask, a, api.MeshNetwork, &skepv1.MeshNetworkRequest{NetworkId: id})
	switch {
	case err == nil:
		return r, nil
	case must || ctx.Err() != nil:
		return nil, err
	case !fault.Is(err, fault.CodeNotFound):
		a.warnf("the peers of network %s are left out: %v", n.GetSpec().GetName(), err)
	}
	return nil, nil
}

func (a *app) networkRemove() *cobra.Command {
	var force bool
	cmd := &cobra.Command{Use: "rm [OPTIONS] NETWORK [NETWORK...]", Aliases: []string{"remove"}, Short: "Remove networks", Args: minArgs(1), ValidArgsFunction: a.completeNetworks,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(cmd.Context(), args, func(ref string) error {
				// By its id: should the answer be lost, nothing else that has the name by then is removed.
				n, err := call(cmd.Context(), a, api.NetworkInspect, &skepv1.Ref{Ref: ref})
				if err == nil {
					_, err = call(cmd.Context(), a, api.NetworkRemove, &skepv1.Ref{Ref: n.GetNetwork().GetMeta().GetId()})
				}
				if force && fault.Is(err, fault.CodeNotFound) {
					return nil
				}
				if err != nil {
					return err
				}
				a.printf("%s\n", ref)
				return nil
			})
		}}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "Do not complain about networks that do not exist")
	return cmd
}

func (a *app) networkPrune() *cobra.Command {
	var force bool
	var filters filterFlag
	cmd := &cobra.Command{Use: "prune [OPTIONS]", Short: "Remove the networks that no service is on", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			p, err := parsePrune(&filters, a.Now())
			if err != nil {
				return err
			}
			if !force {
				a.printf("WARNING! This will remove all custom networks not used by at least one service.\n")
				if err := a.confirm(ctx, "network prune"); err != nil {
					return err
				}
			}
			list, err := a.networks(ctx, p.api...)
			if err != nil {
				return err
			}
			list = slices.DeleteFunc(list, func(n *skepv1.Network) bool { return !p.takes(n) })
			told := false
			err = a.each(ctx, networkIDs(list), func(id string) error {
				r, err := call(ctx, a, api.NetworkRemove, &skepv1.Ref{Ref: id})
				switch {
				case fault.Is(err, fault.CodeNotFound):
					return nil // somebody else removed it
				case fault.Is(err, fault.CodeConflict):
					a.warnf("%v", err) // a service joined it meanwhile
					return nil
				case err != nil:
					return err
				}
				if !told {
					told = true
					a.printf("Deleted Networks:\n")
				}
				a.printf("%s\n", r.Network.GetSpec().GetName())
				return nil
			})
			if told {
				a.printf("\n")
			}
			return err
		}}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "Do not ask")
	filters.addAs(cmd, "", "Remove only what matches", "label", "label!", "until")
	return cmd
}

func networkIDs(list []*skepv1.Network) []string {
	var out []string
	for _, n := range list {
		out = append(out, n.GetMeta().GetId())
	}
	return out
}

// pruning is which networks a prune is about.
type pruning struct {
	api    []*skepv1.Filter
	unlike []string // label!=
	until  *timestamppb.Timestamp
}

func parsePrune(filters *filterFlag, now time.Time) (p pruning, err error) {
	f, err := filters.parse()
	if err != nil {
		return p, err
	}
	p.api = []*skepv1.Filter{filter("type", "custom")}
	for _, x := range f {
		switch x.Key {
		case "label":
			p.api = append(p.api, x)
		case "label!":
			p.unlike = x.Values
		case "until":
			if len(x.Values) > 1 {
				return p, Usagef("more than one until filter specified")
			}
			if p.until, err = parseWhen("filter until", x.Values[0], now); err != nil {
				return p, err
			}
		}
	}
	return p, nil
}

// takes tells whether a network goes: nobody is on it, it is not everybody's, and no filter spares it.
func (p pruning) takes(n *skepv1.Network) bool {
	if n.GetScope() != "swarm" || n.GetServices() > 0 || spec.Predefined(n.GetMeta().GetId()) != "" {
		return false
	}
	if p.until != nil && !n.GetMeta().GetCreatedAt().AsTime().Before(p.until.AsTime()) {
		return false
	}
	return !slices.ContainsFunc(p.unlike, func(l string) bool {
		k, v, valued := strings.Cut(l, "=")
		have, ok := n.GetSpec().GetLabels()[k]
		return ok && (!valued || have == v)
	})
}

// confirm asks whether to go on; anything but yes is no.
func (a *app) confirm(ctx context.Context, what string) error {
	a.printf("Are you sure you want to continue? [y/N] ")
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(a.In).ReadString('\n') // no answer is no
		answer <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case word := <-answer:
		if word == "y" || word == "yes" {
			return nil
		}
		return &Failure{ExitError, errors.New(what + " has been cancelled")}
	}
}

// networkRefused is a command of Docker's about single containers, which are not how a cluster's networks are joined.
func (a *app) networkRefused(verb, flag string) *cobra.Command {
	return &cobra.Command{Use: verb + " [OPTIONS] NETWORK CONTAINER", Short: "Refused: services join and leave networks, not single containers", Hidden: true,
		FParseErrWhitelist: cobra.FParseErrWhitelist{UnknownFlags: true},
		RunE: func(*cobra.Command, []string) error {
			return fault.Invalid("network %s is about single containers, and a task's networks are its service's: use `skep service update %s NETWORK SERVICE`", verb, flag)
		}}
}
