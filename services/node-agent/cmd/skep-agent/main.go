// Command skep-agent runs the node-agent alone; `skep node` runs it together with the node's other services. Being the
// one service that every node has, it also answers on node.sock and renews the node's certificate.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"strings"
	"time"

	"go.uber.org/zap"

	"skep.dev/libs/attach"
	"skep.dev/libs/daemon"
	"skep.dev/libs/fault"
	"skep.dev/libs/member"
	"skep.dev/libs/pki"
	agent "skep.dev/services/node-agent"
)

// controlled is the agent with the node's control socket.
type controlled struct {
	*agent.Service
	env daemon.Env
	ctl *member.Control
}

func control(a *agent.Service, env daemon.Env) *controlled {
	c := &controlled{Service: a, env: env}
	r := env.Record
	c.ctl = member.NewControl(member.Info{
		NodeID: env.NodeID, ClusterID: r.ClusterID, Role: r.Role, Hostname: r.Hostname, Addr: r.Host(), ManagerAddrs: r.ManagerAddrs(), Version: env.Version,
	}, c.leave)
	c.ctl.CA = env.Store.CAPEM
	return c
}

// SetManager takes the node's new role, and who the managers are now.
func (c *controlled) SetManager(is bool) {
	c.Service.SetManager(is)
	r, err := member.Load(c.env.Paths)
	if err != nil {
		c.env.Log.Warn("the node's record is unreadable", zap.Error(err))
		return
	}
	c.ctl.Change(func(i *member.Info) { i.Role, i.ManagerAddrs = r.Role, r.ManagerAddrs() })
}

func (c *controlled) Run(ctx context.Context) error {
	r, ctl := c.env.Record, c.ctl
	if err := ctl.Serve(c.env.Paths.Control()); err != nil {
		return err
	}
	defer ctl.Close()
	go func() {
		select {
		case <-c.Ready():
			ctl.Ready()
			c.env.Log.Info("node ready", zap.String("node", c.env.NodeID), zap.String("role", r.Role))
		case <-ctx.Done():
		}
	}()
	return c.Service.Run(ctx)
}

// leave is for the one process that can end all services of the node.
func (c *controlled) leave(context.Context, bool) error {
	return fault.Conflict("this node's services run as processes of their own (%s): stop them, then leave again", strings.Join(member.Holders(c.env.Paths), ", "))
}

// awaitMesh returns once the mesh answers: an agent without one could neither start a task nor tell leftovers from tasks.
func awaitMesh(ctx context.Context, a attach.Attacher, log *zap.Logger) error {
	for said := false; ; {
		_, err := a.List(ctx)
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		if !said {
			log.Info("waiting for the node's mesh", zap.Error(err))
			said = true
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Healthy says whether the node is ready.
func (c *controlled) Healthy(context.Context) error {
	select {
	case <-c.Ready():
		return nil
	default:
		return errors.New("the node is not ready yet")
	}
}

func main() {
	var (
		containerd, binDir, advertise, dataPath, mesh, pluginDirs string
		parallel                                                  int
		restarts                                                  bool
	)
	daemon.Exit(daemon.Main{
		Name: "skep-agent", Containers: true, About: "runs this node's tasks on containerd", Role: "agent", Single: true, Renews: true,
		Flags: func(fs *flag.FlagSet) {
			fs.StringVar(&containerd, "containerd", "", "socket of a containerd to use (default: run one)")
			fs.StringVar(&binDir, "bin-dir", "", "folder with containerd, its shim, runc and skep-init, before PATH")
			fs.StringVar(&advertise, "advertise-addr", "", "address of this node as others see it")
			fs.StringVar(&dataPath, "data-path-addr", "", "address for container traffic")
			fs.StringVar(&mesh, "mesh", "", "socket of the node's mesh (default <run-dir>/mesh.sock)")
			fs.StringVar(&pluginDirs, "plugin-dirs", "", "folders to look for volume plug-ins in, with commas between (default: Docker's, /run/docker/plugins and so on)")
			fs.BoolVar(&restarts, "restarts", false, "it is started again at once when it is stopped, perhaps as another version: the managers wait 30 s before its tasks move")
			fs.IntVar(&parallel, "start-parallelism", 0, "containers started at once (default: twice the CPUs)")
		},
		New: func(ctx context.Context, env daemon.Env) (daemon.Service, error) {
			net := attach.Dial(cmp.Or(mesh, env.Paths.Mesh()))
			if err := awaitMesh(ctx, net, env.Log); err != nil {
				return nil, err
			}
			r := env.Record
			if now, err := member.Load(env.Paths); err == nil {
				r = now // the mesh may have learnt the subnet since
			}
			a, err := agent.New(agent.Config{
				NodeID: env.NodeID, NC: env.NC, Log: env.Log, DataDir: env.DataDir, RunDir: env.RunDir, Version: env.Version,
				Certificate: env.Store, Attacher: net, ContainerdAddress: cmp.Or(containerd, r.Containerd), BinDir: binDir, StartParallelism: parallel, PluginDirs: pluginDirs,
				Hostname: r.Hostname, AdvertiseAddr: cmp.Or(advertise, r.Host()), DataPathAddr: cmp.Or(dataPath, r.DataPath),
				MaxTasks: r.TaskLimit(), Manager: env.Store.Identity().Role == pki.Manager, Metrics: env.Metrics,
				Restarts: restarts,
			})
			if err != nil {
				return nil, err
			}
			return control(a, env), nil
		},
	})
}
