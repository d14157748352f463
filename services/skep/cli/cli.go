// Package cli is skep's command line: Docker's noun-verb tree over skep's API.
//
// It owns how people speak to a cluster: flags, tables, waiting and exit codes. It keeps no state, decides nothing the
// cluster decides, and imports neither the broker nor the container runtime, so that a command starts in milliseconds.
// When it is interrupted or loses the cluster, what it asked for goes on without it; it says so.
package cli

import (
	"context"
	"crypto/x509"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"skep.dev/libs/fault"
	"skep.dev/services/skep/cli/conn"
	"skep.dev/services/skep/cli/plain"
)

// Env is what a command line runs in.
type Env struct {
	In       io.Reader
	Out, Err io.Writer
	Getenv   func(string) string
	Version  string
	Commit   string
	// NodeCommands adds the commands that need the daemon's code: init, join, leave, and the daemon form of node.
	// It is called once with the root, whose tree is complete by then, and once with a stand-in whose init, join and
	// leave become those of `swarm`.
	NodeCommands func(root *cobra.Command)

	// Tests override these; nil means the real thing.
	Connect func(ctx context.Context) (*nats.Conn, error)
	Info    func(ctx context.Context) (conn.Info, error)
	Link    func(ctx context.Context) (conn.Link, error) // how the node of this machine stands with the managers; nil = the daemon says
	CA      func(ctx context.Context) (*x509.Certificate, error)
	Now     func() time.Time
	// Patience is how long to wait for a manager that restarts (default 8 s).
	Patience time.Duration
	// NodeTimeout is how long a node's mesh may take to answer (default 3 s).
	NodeTimeout time.Duration
	// CompleteTimeout is what a press of Tab may cost (default 1 s).
	CompleteTimeout time.Duration
}

// app is what commands share: the environment, the global flags and, once a command needs it, the connection.
type app struct {
	Env
	Out, Err *plain.Writer // the environment's: nothing is printed past them
	runDir   string
	context  string
	store    conn.Store
	nc       *nats.Conn

	mu       sync.Mutex
	refusals map[*refusal]bool
	noticed  bool
	// staleTold: that answers are old was said. moved: another manager was looked for.
	staleTold, moved bool
}

// New builds the command tree.
func New(env Env) *cobra.Command {
	root, _ := build(env)
	return root
}

func build(env Env) (*cobra.Command, *app) {
	if env.Getenv == nil {
		env.Getenv = os.Getenv
	}
	if env.Now == nil {
		env.Now = time.Now
	}
	if env.Patience == 0 {
		env.Patience = patience
	}
	if env.NodeTimeout == 0 {
		env.NodeTimeout = stateTimeout
	}
	out, errs := printers(env)
	env.Out, env.Err = out, errs
	a := &app{Env: env, Out: out, Err: errs, store: conn.DefaultStore(env.Getenv), refusals: map[*refusal]bool{}}
	root := &cobra.Command{
		Use:           "skep [OPTIONS] COMMAND",
		Short:         "Run container services across many machines",
		Long:          "skep runs container services across many machines: the verbs of Docker Swarm over NATS.\n\nBegin with `skep init` on the first machine and `skep join` on the others.",
		Version:       env.Version,
		SilenceErrors: true, SilenceUsage: true,
		TraverseChildren: true,
		Args:             unknownCommand, RunE: showHelp,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: false},
	}
	root.SetVersionTemplate("skep version {{.Version}}\n")
	root.SetIn(env.In)
	root.SetOut(env.Out)
	root.SetErr(env.Err)
	root.SetFlagErrorFunc(flagError)
	runDir := env.Getenv("SKEP_RUN_DIR")
	if runDir == "" {
		runDir = conn.DefaultRunDir
	}
	root.PersistentFlags().StringVar(&a.runDir, "run-dir", runDir, "Directory of the local daemon's sockets (env SKEP_RUN_DIR)")
	root.PersistentFlags().StringVar(&a.context, "context", "", "Name of the context to use (env SKEP_CONTEXT; default: the one chosen with skep context use)")
	_ = root.RegisterFlagCompletionFunc("context", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		names, err := a.store.List()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return append(names, conn.Local), cobra.ShellCompDirectiveNoFileComp
	})
	root.AddCommand(a.serviceCommand(), a.stackCommand(), a.networkCommand(), a.meshCommand(), a.nodeCommand(), a.taskCommand(), a.secretCommand(aSecret), a.secretCommand(aConfig), a.swarmCommand(), a.joinTokenCommand(), a.caCommand(), a.unlockCommand(), a.unlockKeyCommand())
	root.AddCommand(a.extraCommands()...)
	if env.NodeCommands != nil {
		env.NodeCommands(root)
		standIn := &cobra.Command{Use: "skep"}
		env.NodeCommands(standIn)
		swarm, _, err := root.Find([]string{"swarm"})
		for _, c := range standIn.Commands() {
			if err == nil && (c.Name() == "init" || c.Name() == "join" || c.Name() == "leave") {
				standIn.RemoveCommand(c)
				swarm.AddCommand(c)
			}
		}
	}
	argumentsAreUsage(root)
	root.SetUsageTemplate(usageTemplate)
	strict(root)
	tidy(root)
	return root, a
}

// Main runs one command line and returns the exit status. ctx ending (Ctrl-C) ends the command, not what it began.
func Main(ctx context.Context, env Env, args []string) int {
	root, a := build(env)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if a.nc != nil {
		a.nc.Close()
	}
	code := report(a.Err, cmd, err)
	_, _ = a.Out.Flush(), a.Err.Flush() // output that is gone ends the command by SIGPIPE
	return code
}

// printers are what everything is printed through.
func printers(env Env) (out, errs *plain.Writer) {
	if env.Out == nil {
		env.Out = os.Stdout
	}
	if env.Err == nil {
		env.Err = os.Stderr
	}
	return plain.NewWriter(env.Out), plain.NewWriter(env.Err)
}

// conn connects on first use.
func (a *app) conn(ctx context.Context) (*nats.Conn, error) {
	if a.nc != nil {
		return a.nc, nil
	}
	var err error
	if a.Connect != nil {
		a.nc, err = a.Connect(ctx)
	} else {
		a.nc, err = conn.Dial(ctx, conn.Options{RunDir: a.runDir, Context: a.contextName(), Store: a.store, Patience: min(a.Patience, dialPatience), Notice: a.notice, Elsewhere: a.elsewhereNow,
			Kept: func(err error) {
				a.warnf("the root of the cluster is being rotated, and this context's certificate was not exchanged: %v", err)
			}})
	}
	if err == nil {
		a.nc.SetErrorHandler(a.refused)
	}
	return a.nc, err
}

// contextName is the context in force, "" for the local daemon.
func (a *app) contextName() string {
	name := a.context
	if name == "" {
		name = a.Getenv("SKEP_CONTEXT")
	}
	if name == "" {
		name = a.store.Current()
	}
	if name == conn.Local {
		return ""
	}
	return name
}

// info is what the daemon of this machine says; zero when the cluster is another one or there is no daemon.
func (a *app) info(ctx context.Context) conn.Info {
	i, err := a.localInfo(ctx)
	if err != nil {
		return conn.Info{}
	}
	return i
}

// localInfo is info, with the reason why nothing is known.
func (a *app) localInfo(ctx context.Context) (conn.Info, error) {
	switch {
	case a.Info != nil:
		return a.Info(ctx)
	case a.contextName() != "":
		return conn.Info{}, nil
	}
	return conn.LocalInfo(ctx, a.runDir)
}

// node resolves the word "self" to this node's id.
func (a *app) node(ctx context.Context, ref string) (string, error) {
	if ref != "self" {
		return ref, nil
	}
	if i := a.info(ctx); i.NodeID != "" {
		return i.NodeID, nil
	}
	return "", fault.NotFound("node ID not found in /info: this machine is not a node of the cluster; name a node instead of \"self\"")
}

// printf prints a result, tellf what goes with it. Values are data, each a plain.Cell; what is the program's own stands
// in the format.
func (a *app) printf(format string, v ...any) { plain.Fprintf(a.Out, format, v...) }

func (a *app) tellf(format string, v ...any) { plain.Notef(a.Err, format, v...) }

func (a *app) warnf(format string, v ...any) {
	a.tellf("Warning: "+strings.TrimSuffix(format, "\n")+"\n", v...)
}

func showHelp(cmd *cobra.Command, _ []string) error { return cmd.Help() }
