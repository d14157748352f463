package cli

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protodelim"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/stream"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/render"
)

const allNodes = "all"

func (a *app) imageCommand() *cobra.Command {
	return group("image", "Manage the images on nodes", a.imageList(), a.imageLoad(), a.imagePull(), a.imageRemove())
}

func (a *app) nodeFlag(cmd *cobra.Command, to *[]string, def string) {
	cmd.Flags().StringArrayVar(to, "node", nil, `Node to do it on, or "all"; may be given many times (default `+def+`)`)
	_ = cmd.RegisterFlagCompletionFunc("node", func(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
		n, d := a.completeNodes(cmd, nil, word)
		return append(n, allNodes), d
	})
}

// targets are the nodes --node names; all means every node that is ready.
func (a *app) targets(ctx context.Context, refs []string, def string) ([]*skepv1.Node, error) {
	if len(refs) == 0 {
		if def == "self" && a.info(ctx).NodeID == "" {
			return nil, Usagef("this machine is not a node of the cluster: say which nodes are meant, --node NODE or --node all")
		}
		refs = []string{def}
	}
	var out []*skepv1.Node
	seen := map[string]bool{}
	add := func(n *skepv1.Node) {
		if id := n.GetMeta().GetId(); !seen[id] {
			seen[id] = true
			out = append(out, n)
		}
	}
	for _, ref := range refs {
		if ref == allNodes {
			nodes, err := a.nodes(ctx)
			if err != nil {
				return nil, err
			}
			for _, n := range nodes {
				if serves(n) {
					add(n)
				} else if len(refs) == 1 && !n.GetWitness() {
					a.warnf("node %s is %s: left out", render.Hostname(n), strings.ToLower(render.NodeState(n.GetStatus().GetState())))
				}
			}
			continue
		}
		ref, err := a.node(ctx, ref)
		if err != nil {
			return nil, err
		}
		n, err := a.inspectNode(ctx, ref)
		if err != nil {
			return nil, err
		}
		if n.GetWitness() {
			return nil, fault.Invalid("node %s is a witness: it has no containers, images, volumes or networks", render.Hostname(n))
		}
		add(n)
	}
	return out, nil
}

// serves reports whether a node is there and has an agent and a mesh to ask: a witness has none.
func serves(n *skepv1.Node) bool {
	return n.GetStatus().GetState() == skepv1.NodeState_NODE_STATE_READY && !n.GetWitness()
}

// onNodes does the same on several nodes at once, a few at a time, and gathers what failed.
func (a *app) onNodes(ctx context.Context, nodes []*skepv1.Node, f func(n *skepv1.Node) error) error {
	if _, err := a.conn(ctx); err != nil {
		return err
	}
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error
		slot = make(chan struct{}, 16)
	)
	for _, n := range nodes {
		wg.Add(1)
		slot <- struct{}{}
		go func() {
			defer func() { <-slot; wg.Done() }()
			if err := f(n); err != nil {
				mu.Lock()
				if name := "node " + render.Hostname(n); !strings.HasPrefix(err.Error(), name+" ") { // else it says so itself
					err = fmt.Errorf("%s: %w", name, err)
				}
				errs = append(errs, err)
				mu.Unlock()
			}
		}()
	}
	wg.Wait()
	for _, err := range errs {
		var f *fault.Error
		if errors.As(err, &f) && f.Code == fault.CodeDenied {
			return f // of every node it is the same
		}
	}
	return joined(errs)
}

func (a *app) imageList() *cobra.Command {
	var l listFlags
	var nodes []string
	cmd := &cobra.Command{Use: "ls [OPTIONS]", Aliases: []string{"list"}, Short: "List the images on nodes", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			on, err := a.targets(ctx, nodes, allNodes)
			if err != nil {
				return err
			}
			var mu sync.Mutex
			by := map[string][]*skepv1.Image{}
			var all []*skepv1.Image
			ferr := a.onNodes(ctx, on, func(n *skepv1.Node) error {
				r, err := call(ctx, a, api.ImageList.At(n.GetMeta().GetId()), &skepv1.ListImagesRequest{})
				if err != nil {
					return err
				}
				mu.Lock()
				defer mu.Unlock()
				by[render.Hostname(n)] = append(by[render.Hostname(n)], r.Images...)
				all = append(all, r.Images...)
				return nil
			})
			if err := printList(a, &l, all, render.Images(by, a.Now(), l.noTrunc)); err != nil {
				return err
			}
			return ferr
		}}
	l.add(cmd, "the ids")
	a.nodeFlag(cmd, &nodes, "all")
	return cmd
}

func (a *app) imagePull() *cobra.Command {
	var nodes []string
	var auth bool
	cmd := &cobra.Command{Use: "pull [OPTIONS] IMAGE", Short: "Fetch an image onto nodes before anything needs it", Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			on, err := a.targets(cmd.Context(), nodes, "self")
			if err != nil {
				return err
			}
			id := ""
			if auth {
				if id, _, err = a.sendCredentials(cmd.Context(), args[0], false); err != nil {
					return err
				}
			}
			return a.onNodes(cmd.Context(), on, func(n *skepv1.Node) error {
				// A pull takes as long as the network does.
				ctx, cancel := context.WithTimeout(cmd.Context(), time.Hour)
				defer cancel()
				r, err := ask(ctx, a, a.nc, api.ImagePull.At(n.GetMeta().GetId()), &skepv1.PullImageRequest{Ref: args[0], RegistryAuth: id})
				if err != nil {
					return err
				}
				a.printf("%s: %s %s\n", render.Hostname(n), r.Name, r.Digest)
				return nil
			})
		}}
	a.nodeFlag(cmd, &nodes, "self")
	cmd.Flags().BoolVar(&auth, "with-registry-auth", false, "Give managers your credentials for the image's registry (skep login), sealed; workers get those of their tasks alone")
	return cmd
}

func (a *app) imageRemove() *cobra.Command {
	var nodes []string
	var force bool
	cmd := &cobra.Command{Use: "rm [OPTIONS] IMAGE [IMAGE...]", Aliases: []string{"remove"}, Short: "Remove images from nodes", Args: minArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			on, err := a.targets(ctx, nodes, "self")
			if err != nil {
				return err
			}
			return a.onNodes(ctx, on, func(n *skepv1.Node) error {
				return a.each(ctx, args, func(ref string) error {
					r, err := call(ctx, a, api.ImageRemove.At(n.GetMeta().GetId()), &skepv1.RemoveImageRequest{Ref: ref, Force: force})
					if err != nil {
						return err
					}
					for _, name := range r.Removed {
						a.printf("%s: removed %s\n", render.Hostname(n), name)
					}
					return nil
				})
			})
		}}
	a.nodeFlag(cmd, &nodes, "self")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "Remove it although a container uses it")
	return cmd
}

func (a *app) imageLoad() *cobra.Command {
	var nodes []string
	var input string
	var quiet bool
	cmd := &cobra.Command{Use: "load [OPTIONS]", Short: "Put the images of an OCI or Docker archive onto nodes, without a registry", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			on, err := a.targets(ctx, nodes, "self")
			if err != nil {
				return err
			}
			open, done, err := a.archive(input, len(on))
			if err != nil {
				return err
			}
			defer done()
			return a.onNodes(ctx, on, func(n *skepv1.Node) error {
				r, err := open()
				if err != nil {
					return err
				}
				defer r.Close()
				names, err := a.load(ctx, n, r)
				if err != nil {
					return err
				}
				for _, name := range names {
					if quiet {
						a.printf("%s\n", name)
					} else {
						a.printf("%s: loaded image %s\n", render.Hostname(n), name)
					}
				}
				return nil
			})
		}}
	cmd.Flags().StringVarP(&input, "input", "i", "", "Read the archive from a file instead of the standard input")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Print only the names of the images")
	a.nodeFlag(cmd, &nodes, "self")
	return cmd
}

// archive opens the input once for every node; what comes through a pipe and goes to several nodes is kept in a file
// meanwhile.
func (a *app) archive(path string, times int) (open func() (io.ReadCloser, error), done func(), err error) {
	done = func() {}
	if path == "" || path == "-" {
		if _, terminal := terminalOf(a.In); terminal || a.In == nil {
			return nil, done, Usagef("requested load from stdin, but stdin is a terminal: pipe an archive in, or name it with --input")
		}
		if times <= 1 {
			return func() (io.ReadCloser, error) { return io.NopCloser(a.In), nil }, done, nil
		}
		f, err := os.CreateTemp("", "skep-image-*.tar")
		if err != nil {
			return nil, done, fmt.Errorf("keep the archive for several nodes: %w", err)
		}
		path = f.Name()
		done = func() { _ = os.Remove(path) }
		_, err = io.Copy(f, a.In)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			done()
			return nil, func() {}, fmt.Errorf("keep the archive for several nodes in %s: %w", path, err)
		}
	}
	return func() (io.ReadCloser, error) {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("open the archive: %w", err)
		}
		return f, nil
	}, done, nil
}

// load sends one archive to one node. The node answers on "out" with a LoadImageReply led by its length.
func (a *app) load(ctx context.Context, n *skepv1.Node, archive io.Reader) ([]string, error) {
	id := n.GetMeta().GetId()
	s, err := dial(ctx, a, a.nc, api.ImageOpen.At(id), &skepv1.LoadImageRequest{NodeId: id})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	go drain(s)
	go func() { _, _ = io.Copy(io.Discard, s.Reader(stream.Err)) }()
	sent := make(chan error, 1)
	go func() {
		in := s.Writer(stream.In)
		_, err := io.Copy(in, archive)
		if cerr := in.Close(); err == nil {
			err = cerr
		}
		sent <- err
	}()
	out, rerr := io.ReadAll(s.Reader(stream.Out))
	exit, err := s.Wait()
	switch {
	case err != nil:
		return nil, err
	case exit.GetErr() != "":
		return nil, errors.New(exit.Err)
	case exit.GetCode() != 0:
		return nil, fmt.Errorf("the load ended with status %d", exit.Code)
	case rerr != nil:
		return nil, rerr
	}
	select {
	case err := <-sent:
		if err != nil && !errors.Is(err, stream.ErrClosed) {
			return nil, fmt.Errorf("send the archive: %w", err)
		}
	default: // the node had seen enough of it
	}
	var r skepv1.LoadImageReply
	if err := protodelim.UnmarshalFrom(bufio.NewReader(bytes.NewReader(out)), &r); err != nil {
		return nil, fmt.Errorf("read what was loaded: %w", err)
	}
	return r.Names, nil
}
