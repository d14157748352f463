package cli

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/render"
	"skep.dev/services/skep/cli/specflag"
)

// volumePatience is how long the work on a volume may take: files are removed one by one.
const volumePatience = 15 * time.Minute

// mostVolumes is how many volumes a node is believed to have.
const mostVolumes = 100_000

func (a *app) volumeCommand() *cobra.Command {
	return group("volume", "Manage the volumes on nodes", append([]*cobra.Command{
		a.volumeCreate(), a.volumeList(), a.volumeInspect(), a.volumeUpdate(), a.volumeRemove(), a.volumePrune(),
	}, a.claimCommands()...)...)
}

func (a *app) volumeCreate() *cobra.Command {
	var nodes, opts, labels []string
	r := &skepv1.CreateVolumeRequest{}
	cmd := &cobra.Command{Use: "create [OPTIONS] [VOLUME]", Short: "Make a volume on a node", Args: maxArgs(1),
		Long: "Make a volume on a node.\n\nA service's task makes the volumes it mounts by itself, on the node it runs on; this is for those that shall be there before, " +
			"with options or labels. The local driver takes type, device and o as mount(8) does:\n" +
			"  skep volume create --opt type=nfs --opt device=:/export --opt o=addr=nas.example.com,rw data",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				r.Name = args[0]
			}
			var err error
			if r.Labels, err = specflag.Labels(labels); err != nil {
				return err
			}
			if r.Options, err = volumeOptions(opts); err != nil {
				return err
			}
			// The node's rules, before anything is sent.
			if r.Driver == "" || r.Driver == "local" {
				if err := spec.ValidateLocalVolume(r.Options); err != nil {
					return &Failure{ExitUsage, err}
				}
			}
			if err := spec.ValidateLabels(r.Labels); err != nil {
				return &Failure{ExitUsage, err}
			}
			on, err := a.targets(cmd.Context(), nodes, "self")
			if err != nil {
				return err
			}
			if len(on) > 1 && r.Name == "" {
				return Usagef("a volume on several nodes needs a name")
			}
			var once sync.Once
			return a.onNodes(cmd.Context(), on, func(n *skepv1.Node) error {
				v, err := a.volumeCall(cmd.Context(), n, func(ctx context.Context, id string) (*skepv1.VolumeReply, error) {
					return ask(ctx, a, a.nc, api.VolumeCreate.At(id), r)
				})
				if err == nil {
					once.Do(func() { a.printf("%s\n", v.GetVolume().GetName()) })
				}
				return err
			})
		}}
	f := cmd.Flags()
	f.StringVarP(&r.Driver, "driver", "d", "local", "Driver of the volume: local, or a plug-in")
	f.StringArrayVarP(&opts, "opt", "o", nil, "Option of the driver, key=value")
	f.StringArrayVar(&labels, "label", nil, "Label of the volume")
	a.nodeFlag(cmd, &nodes, "self")
	completeWords(cmd, "opt", "type=", "device=", "o=")
	return cmd
}

func volumeOptions(in []string) (map[string]string, error) {
	out := map[string]string{}
	for _, o := range in {
		k, v, ok := strings.Cut(o, "=")
		if !ok || k == "" {
			return nil, Usagef("invalid option '%s': options are key=value", o)
		}
		if _, twice := out[k]; twice {
			return nil, Usagef("option %s is given twice", k)
		}
		out[k] = v
	}
	return out, nil
}

// volumeCall asks one node for what may take long.
func (a *app) volumeCall(ctx context.Context, n *skepv1.Node, f func(ctx context.Context, id string) (*skepv1.VolumeReply, error)) (*skepv1.VolumeReply, error) {
	ctx, cancel := context.WithTimeout(ctx, volumePatience)
	defer cancel()
	return f(ctx, n.GetMeta().GetId())
}

// volumesOn lists the volumes of nodes. What a node or driver does not tell is warned of and left out; err has the nodes.
func (a *app) volumesOn(ctx context.Context, nodes []*skepv1.Node, size bool, f []*skepv1.Filter) ([]*skepv1.Volume, error) {
	var mu sync.Mutex
	var out []*skepv1.Volume
	var warned []string
	err := a.onNodes(ctx, nodes, func(n *skepv1.Node) error {
		var said []string
		told := 0
		list, err := pages(func(p *skepv1.Page) ([]*skepv1.Volume, string, error) {
			r, err := call(ctx, a, api.VolumeList.At(n.GetMeta().GetId()), &skepv1.ListVolumesRequest{Filters: f, Size: size, Page: p})
			said = r.GetWarnings()
			if told += len(r.GetVolumes()); told > mostVolumes || r.GetNext() != "" && r.GetNext() <= p.GetAfter() {
				return nil, "", fault.Unavailable("it tells of volumes without end")
			}
			return r.GetVolumes(), r.GetNext(), err
		})
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		for _, w := range said {
			warned = append(warned, "node "+render.Hostname(n)+": "+w)
		}
		for _, v := range list {
			v.NodeId, v.NodeHostname = n.GetMeta().GetId(), render.Hostname(n)
			out = append(out, v)
		}
		return nil
	})
	slices.SortFunc(warned, render.NaturalCompare)
	a.warnings(warned)
	slices.SortFunc(out, func(x, y *skepv1.Volume) int {
		return cmp.Or(render.NaturalCompare(x.Name, y.Name), cmp.Compare(x.Driver, y.Driver), render.NaturalCompare(x.NodeHostname, y.NodeHostname))
	})
	return out, err
}

// usersOfVolumes are the names of the tasks that volumes are used by, by id. Without managers there are the ids.
func (a *app) usersOfVolumes(ctx context.Context, list []*skepv1.Volume) map[string]string {
	names := map[string]string{}
	if !slices.ContainsFunc(list, func(v *skepv1.Volume) bool { return len(v.TaskIds) > 0 }) {
		return names
	}
	tasks, err := a.tasks(impatient(ctx))
	if err != nil {
		a.warnf("tasks are shown by their ids: %v", err)
	}
	for _, t := range tasks {
		names[t.GetMeta().GetId()] = t.GetName()
	}
	return names
}

// writersOf are the claims on volumes. The list is of use without them too.
func (a *app) writersOf(ctx context.Context, list []*skepv1.Volume) []*skepv1.VolumeClaim {
	if len(list) == 0 {
		return nil
	}
	claims, err := a.claims(impatient(ctx))
	if err != nil {
		a.warnf("which node may write which volume is left out: %v", err)
	}
	return claims
}

func (a *app) volumeList() *cobra.Command {
	var l listFlags
	var nodes []string
	var size bool
	cmd := &cobra.Command{Use: "ls [OPTIONS]", Aliases: []string{"list"}, Short: "List volumes: what is on which node, and which tasks use it", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			f, err := l.filters.parse()
			if err != nil {
				return err
			}
			// Which nodes, and whether anybody on any of them uses it, no node can tell.
			var dangling []string
			f = slices.DeleteFunc(f, func(x *skepv1.Filter) bool {
				switch x.Key {
				case "node":
					nodes = append(nodes, x.Values...)
				case "dangling":
					dangling = x.Values
				default:
					return false
				}
				return true
			})
			on, err := a.targets(ctx, nodes, allNodes)
			if err != nil {
				return err
			}
			list, ferr := a.volumesOn(ctx, on, size, f)
			if len(dangling) > 0 {
				list = danglingOnly(list, dangling)
			}
			if err := printList(a, &l, list, render.Volumes(list, a.usersOfVolumes(ctx, list), a.writersOf(ctx, list), a.Now(), size)); err != nil {
				return err
			}
			return ferr
		}}
	l.add(cmd, "the names", "name", "driver", "label", "dangling=true|false|1|0", "node")
	cmd.Flags().BoolVarP(&size, "size", "s", false, "Show what the volumes' files take on the disks (looks at every file)")
	a.nodeFlag(cmd, &nodes, "all")
	return cmd
}

// danglingOnly are the volumes that no task mounts ("true") or some does; of one that is the same everywhere, on any node.
func danglingOnly(list []*skepv1.Volume, wants []string) []*skepv1.Volume {
	key := func(v *skepv1.Volume) [3]string {
		if v.Scope == "global" {
			return [3]string{v.Driver, v.Name}
		}
		return [3]string{v.Driver, v.Name, v.NodeId}
	}
	used := map[[3]string]bool{}
	for _, v := range list {
		used[key(v)] = used[key(v)] || len(v.TaskIds) > 0
	}
	return slices.DeleteFunc(list, func(v *skepv1.Volume) bool {
		return !slices.ContainsFunc(wants, func(w string) bool { b, err := strconv.ParseBool(w); return err == nil && b != used[key(v)] })
	})
}

// volumeNamed are the volumes of a name on nodes.
func (a *app) volumeNamed(ctx context.Context, nodes []*skepv1.Node, name string, size bool) ([]*skepv1.Volume, error) {
	list, err := a.volumesOn(ctx, nodes, size, []*skepv1.Filter{filter("name", name)})
	list = slices.DeleteFunc(list, func(v *skepv1.Volume) bool { return v.Name != name })
	if len(list) == 0 && err == nil {
		err = fault.NotFound("no such volume: %s", name)
	}
	return list, err
}

func (a *app) volumeInspect() *cobra.Command {
	var i inspectFlags
	var nodes []string
	var size bool
	cmd := &cobra.Command{Use: "inspect [OPTIONS] VOLUME [VOLUME...]", Short: "Show volumes in full, on every node that has them", Args: minArgs(1), ValidArgsFunction: a.completeVolumes,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			on, err := a.targets(ctx, nodes, allNodes)
			if err != nil {
				return err
			}
			var all []*skepv1.Volume
			err = a.each(ctx, args, func(name string) error {
				list, err := a.volumeNamed(ctx, on, name, size)
				all = append(all, list...)
				return err
			})
			if a.nc != nil {
				names := a.usersOfVolumes(ctx, all)
				if perr := inspect(a, &i, all, func(v *skepv1.Volume) any { return render.DockerVolume(v, names) }, nil); perr != nil {
					return perr
				}
			}
			return err
		}}
	i.add(cmd, false)
	cmd.Flags().BoolVarP(&size, "size", "s", false, "Show also what the volumes' files take on the disks")
	a.nodeFlag(cmd, &nodes, "all")
	return cmd
}

// holding are the nodes to change a volume on: those named, or else the only one that has it. Of a volume that is the same
// everywhere, one. Where it had to look, it returns what it saw, too.
func (a *app) holding(ctx context.Context, refs []string, name string) ([]*skepv1.Node, []*skepv1.Volume, error) {
	if len(refs) > 0 {
		on, err := a.targets(ctx, refs, "self")
		return on, nil, err
	}
	all, err := a.targets(ctx, nil, allNodes)
	if err != nil {
		return nil, nil, err
	}
	list, err := a.volumeNamed(ctx, all, name, false)
	if err != nil {
		return nil, nil, err
	}
	if list[0].Scope != "global" {
		var on []string
		for _, v := range list {
			on = append(on, v.NodeHostname)
		}
		if len(on) > 1 {
			return nil, nil, fault.Conflict("volume %s is on nodes %s, and each has its own: say which is meant, --node NODE or --node all", name, strings.Join(on, ", "))
		}
	}
	at := list[0].NodeId
	for _, v := range list { // the node that uses it refuses what must not be
		if len(v.TaskIds) > 0 || v.Mounted {
			at = v.NodeId
		}
	}
	return slices.DeleteFunc(all, func(n *skepv1.Node) bool { return n.GetMeta().GetId() != at }), list, nil
}

func (a *app) volumeUpdate() *cobra.Command {
	var nodes, add []string
	r := &skepv1.UpdateVolumeRequest{}
	cmd := &cobra.Command{Use: "update [OPTIONS] VOLUME", Short: "Change the labels of a volume", Args: exactArgs(1), ValidArgsFunction: a.completeVolumes,
		RunE: func(cmd *cobra.Command, args []string) error {
			r.Name = args[0]
			var err error
			if r.LabelAdd, err = specflag.Labels(add); err != nil {
				return err
			}
			if len(add)+len(r.LabelRm) == 0 {
				return Usagef("say what to change: --label-add key=value or --label-rm key")
			}
			on, list, err := a.holding(cmd.Context(), nodes, r.Name)
			if err != nil {
				return err
			}
			if list == nil && len(r.LabelRm) > 0 {
				if list, err = a.volumeNamed(cmd.Context(), on, r.Name, false); err != nil {
					return err
				}
			}
			have := map[string]string{}
			for _, v := range list {
				maps.Copy(have, v.Labels)
			}
			a.warnings(absentLabels("volume", r.LabelRm, have))
			if err := a.onNodes(cmd.Context(), on, func(n *skepv1.Node) error {
				_, err := call(cmd.Context(), a, api.VolumeUpdate.At(n.GetMeta().GetId()), r)
				return err
			}); err != nil {
				return err
			}
			a.printf("%s\n", r.Name)
			return nil
		}}
	cmd.Flags().StringArrayVar(&add, "label-add", nil, "Add or change a label")
	cmd.Flags().StringArrayVar(&r.LabelRm, "label-rm", nil, "Remove a label by its key")
	a.nodeFlag(cmd, &nodes, "the one that has it")
	return cmd
}

func (a *app) volumeRemove() *cobra.Command {
	var nodes []string
	var force bool
	cmd := &cobra.Command{Use: "rm [OPTIONS] VOLUME [VOLUME...]", Aliases: []string{"remove"}, Short: "Remove volumes with the data in them", Args: minArgs(1), ValidArgsFunction: a.completeVolumes,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			return a.each(ctx, args, func(name string) error {
				on, _, err := a.holding(ctx, nodes, name)
				if force && fault.Is(err, fault.CodeNotFound) {
					return nil
				}
				if err != nil {
					return err
				}
				if err := a.onNodes(ctx, on, func(n *skepv1.Node) error {
					ctx, cancel := context.WithTimeout(ctx, volumePatience)
					defer cancel()
					_, err := ask(ctx, a, a.nc, api.VolumeRemove.At(n.GetMeta().GetId()), &skepv1.RemoveVolumeRequest{Name: name, Force: force})
					if force && fault.Is(err, fault.CodeNotFound) {
						return nil
					}
					return err
				}); err != nil {
					return err
				}
				a.printf("%s\n", name)
				return nil
			})
		}}
	a.nodeFlag(cmd, &nodes, "the one that has it")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "Do not complain about volumes that do not exist; remove one although ended tasks that are still kept mounted it, or its plug-in is gone. One in use stays")
	return cmd
}

func (a *app) volumePrune() *cobra.Command {
	var nodes []string
	var filters filterFlag
	var force, all bool
	cmd := &cobra.Command{Use: "prune [OPTIONS]", Short: "Remove the local volumes that no task needs", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			f, err := filters.parse()
			if err != nil {
				return err
			}
			on, err := a.targets(ctx, nodes, allNodes)
			if err != nil {
				return err
			}
			if !force {
				what := "anonymous local volumes not used by at least one task, kept ones included"
				if all {
					what = "local volumes not used by at least one task, kept ones included, WITH THEIR DATA"
				}
				a.printf("WARNING! This will remove %s, on %s.\n", what, hostnames(on))
				if err := a.confirm(ctx, "volume prune"); err != nil {
					return err
				}
			}
			var mu sync.Mutex
			var lines []string
			var reclaimed int64
			err = a.onNodes(ctx, on, func(n *skepv1.Node) error {
				ctx, cancel := context.WithTimeout(ctx, volumePatience)
				defer cancel()
				r, err := ask(ctx, a, a.nc, api.VolumePrune.At(n.GetMeta().GetId()), &skepv1.PruneVolumesRequest{All: all, Filters: f})
				mu.Lock()
				defer mu.Unlock()
				for _, name := range r.GetRemoved() {
					lines = append(lines, render.Hostname(n)+": "+name)
				}
				reclaimed += r.GetReclaimedBytes()
				return err
			})
			if len(lines) > 0 {
				slices.SortFunc(lines, render.NaturalCompare)
				a.printf("Deleted Volumes:\n%s\n\n", strings.Join(lines, "\n"))
			}
			a.printf("Total reclaimed space: %s\n", render.Bytes(reclaimed))
			return err
		}}
	a.nodeFlag(cmd, &nodes, "all")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "Remove also volumes that have a name")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "Do not ask")
	filters.addAs(cmd, "", "Remove only what matches", "label", "label!")
	return cmd
}

func hostnames(nodes []*skepv1.Node) string {
	var out []string
	for _, n := range nodes {
		out = append(out, render.Hostname(n))
	}
	slices.SortFunc(out, render.NaturalCompare)
	if len(out) > 5 {
		return "all nodes that are ready"
	}
	return strings.Join(out, ", ")
}

func (a *app) completeVolumes(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.completion(func(ctx context.Context) ([]string, error) {
		on, err := a.targets(ctx, nil, allNodes)
		if err != nil {
			return nil, err
		}
		list, err := a.volumesOn(ctx, on, false, nil)
		var out []string
		for _, v := range list {
			if !v.Anonymous && !slices.Contains(out, v.Name) {
				out = append(out, v.Name)
			}
		}
		if len(out) > 0 {
			err = nil // those of the nodes that answer
		}
		return out, err
	}, args)
}
