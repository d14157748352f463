package cli

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"skep.dev/libs/pki"
	"skep.dev/services/skep/cli/conn"
	"skep.dev/services/skep/cli/render"
)

func (a *app) contextCommand() *cobra.Command {
	return group("context", "Manage the clusters this command can reach",
		a.contextIssue(), a.contextIssued(), a.contextRevoke(), a.contextImport(), a.contextExport(), a.contextNATS(), a.contextDocker(), a.contextCreate(), a.contextList(), a.contextUse(), a.contextShow(), a.contextInspect(), a.contextRemove())
}

func (a *app) contextNames(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	names, err := a.store.List()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return append(names, conn.Local), cobra.ShellCompDirectiveNoFileComp
}

func (a *app) contextCreate() *cobra.Command {
	var c conn.Context
	var cert, key, ca string
	cmd := &cobra.Command{Use: "create [OPTIONS] NAME --addr HOST:PORT --cert FILE --key FILE --ca FILE", Short: "Remember a cluster elsewhere", Args: exactArgs(1),
		Long: "Remember a cluster elsewhere: a manager's address and a client certificate in files of your own; `skep context issue` and `import` do it with one file.\nThe certificate and its key are copied into a file only you can read.",
		RunE: func(cmd *cobra.Command, args []string) error {
			c.Name = args[0]
			if c.Addr == "" {
				return &usageError{cmd, "--addr is required: host:port of a manager"}
			}
			c.Addr = withPort(c.Addr)
			for _, f := range []struct {
				flag, path string
				to         *string
			}{{"cert", cert, &c.Cert}, {"key", key, &c.Key}, {"ca", ca, &c.CA}} {
				if f.path == "" {
					return &usageError{cmd, fmt.Sprintf("--%s is required: a PEM file", f.flag)}
				}
				b, err := os.ReadFile(f.path)
				if err != nil {
					return fmt.Errorf("read --%s: %w", f.flag, err)
				}
				*f.to = string(b)
			}
			if _, err := pki.Memory([]byte(c.Cert), []byte(c.Key), []byte(c.CA)); err != nil {
				return fmt.Errorf("the certificate, key and CA do not fit together: %w", err)
			}
			if err := a.store.Create(c); err != nil {
				return err
			}
			a.printf("%s\n", c.Name)
			return nil
		}}
	f := cmd.Flags()
	f.StringVar(&c.Addr, "addr", "", "Address of a manager: host[:port]")
	f.StringVar(&c.Description, "description", "", "What this cluster is")
	f.StringVar(&cert, "cert", "", "File with the client certificate (PEM)")
	f.StringVar(&key, "key", "", "File with its private key (PEM)")
	f.StringVar(&ca, "ca", "", "File with the cluster's CA certificate (PEM)")
	return cmd
}

func (a *app) contextList() *cobra.Command {
	var format string
	var quiet bool
	cmd := &cobra.Command{Use: "ls [OPTIONS]", Aliases: []string{"list"}, Short: "List contexts", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			names, err := a.store.List()
			if err != nil {
				return err
			}
			current := a.contextName()
			t := &render.Table{Key: "Name", Bools: []string{"Current"}, Columns: []render.Column{{Field: "Name", Header: "NAME"}, {Field: "Description", Header: "DESCRIPTION"}, {Field: "Addr", Header: "ADDRESS"}, {Field: "Error", Header: "ERROR"}, {Field: "Current", Header: "CURRENT"}},
				Default: `{{.Name}}{{if eq (print .Current) "true"}} *{{end}}` + "\t{{.Description}}\t{{.Addr}}\t{{.Error}}"}
			t.Rows = append(t.Rows, render.Row{"Name": conn.Local, "Description": "This machine's daemon", "Addr": "unix://" + conn.Options{RunDir: a.runDir}.Socket(), "Error": "", "Current": fmt.Sprint(current == "")})
			for _, n := range names {
				c, err := a.store.Load(n)
				text := ""
				if err != nil {
					text = err.Error()
				}
				t.Rows = append(t.Rows, render.Row{"Name": n, "Description": c.Description, "Addr": c.Addr, "Error": text, "Current": fmt.Sprint(current == n)})
			}
			return t.Print(a.Out, format, quiet)
		}}
	cmd.Flags().StringVar(&format, "format", "", `"table", "table TEMPLATE", "json" or a Go template`)
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Show only names")
	return cmd
}

func (a *app) contextUse() *cobra.Command {
	return &cobra.Command{Use: "use NAME", Short: "Choose the context used from now on", Args: exactArgs(1), ValidArgsFunction: a.contextNames,
		RunE: func(_ *cobra.Command, args []string) error {
			if err := a.store.Use(args[0]); err != nil {
				return err
			}
			a.printf("%s\n", args[0])
			if v := a.Getenv("SKEP_CONTEXT"); v != "" && v != args[0] {
				a.warnf("SKEP_CONTEXT is set to %q and wins over this choice", v)
			}
			return nil
		}}
}

func (a *app) contextShow() *cobra.Command {
	return &cobra.Command{Use: "show", Short: "Print the name of the context in use", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			name := a.contextName()
			if name == "" {
				name = conn.Local
			}
			a.printf("%s\n", name)
			return nil
		}}
}

func (a *app) contextInspect() *cobra.Command {
	var format string
	cmd := &cobra.Command{Use: "inspect [OPTIONS] [NAME...]", Short: "Show contexts in full, without their private keys", ValidArgsFunction: a.contextNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				args = []string{a.contextName()}
			}
			list, err := gather(a, cmd.Context(), args, func(name string) (any, error) {
				if name == "" || name == conn.Local {
					return map[string]any{"Name": conn.Local, "Addr": "unix://" + conn.Options{RunDir: a.runDir}.Socket()}, nil
				}
				c, err := a.store.Load(name)
				if err != nil {
					return nil, err
				}
				m := map[string]any{"Name": c.Name, "Addr": c.Addr, "Description": c.Description}
				if len(c.Others) > 0 {
					m["Others"] = c.Others
				}
				if s, err := pki.Memory([]byte(c.Cert), []byte(c.Key), []byte(c.CA)); err == nil {
					id := s.Identity()
					m["Identity"], m["Role"], m["ClusterID"], m["Expires"], m["Serial"] = id.NodeID, id.UserRole, id.ClusterID, s.Leaf().NotAfter.UTC(), pki.Serial(s.Leaf())
				}
				return m, nil
			})
			if len(list) > 0 {
				if perr := render.Inspect(a.Out, list, format); perr != nil {
					return perr
				}
			}
			return err
		}}
	cmd.Flags().StringVarP(&format, "format", "f", "", "A Go template")
	return cmd
}

func (a *app) contextRemove() *cobra.Command {
	var force bool
	cmd := &cobra.Command{Use: "rm [OPTIONS] NAME [NAME...]", Aliases: []string{"remove"}, Short: "Forget contexts", Args: minArgs(1), ValidArgsFunction: a.contextNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(cmd.Context(), args, func(name string) error {
				if name == a.store.Current() && !force {
					return fmt.Errorf("context %q is in use: choose another with `skep context use default`, or give --force", name)
				}
				if err := a.store.Remove(name); err != nil {
					return err
				}
				if err := a.forgetNATS(name); err != nil {
					return err
				}
				if name == a.store.Current() {
					if err := a.store.Use(conn.Local); err != nil {
						return err
					}
				}
				a.printf("%s\n", name)
				return nil
			})
		}}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "Remove it although it is in use")
	return cmd
}
