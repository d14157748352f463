package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"skep.dev/libs/api"
	"skep.dev/libs/pki"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/conn"
	"skep.dev/services/skep/cli/plain"
)

// contextExt ends the name of a file that carries a context to another machine.
const contextExt = ".skepcontext"

func (a *app) contextIssue() *cobra.Command {
	i := issue{role: pki.Admin}
	cmd := &cobra.Command{Use: "issue [OPTIONS] NAME", Short: "Make a certificate for a user elsewhere", Args: exactArgs(1), ValidArgsFunction: cobra.NoFileCompletions,
		Long: "Make a certificate for a user elsewhere, and write it with its key and the managers' addresses to one file that only you can read.\n" +
			"On the user's machine `skep context import FILE` takes it in. The key is made here and is in that file alone.\n" +
			"`skep user create` does the same and refuses a name that has a certificate already.",
		Example: "  skep context issue alice\n  skep context issue --role viewer --expiry 24h -o - guest | ssh guest@host skep context import -",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.issueTo(cmd.Context(), args[0], i)
		}}
	i.flags(cmd)
	cmd.Flags().DurationVar(&i.expiry, "expiry", 30*24*time.Hour, "How long the certificate is valid")
	return cmd
}

// issue is what a user's certificate is made with.
type issue struct {
	role, out, addr, description string
	expiry                       time.Duration
	first                        bool // refused while another certificate of the name is good
}

func (i *issue) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&i.role, "role", i.role, "What the user may do: admin (everything), operator (all but nodes, the CA, users and the unlock key), viewer (list and inspect)")
	f.StringVarP(&i.out, "output", "o", "", "File to write, or - for a pipe (default NAME"+contextExt+")")
	f.StringVar(&i.addr, "addr", "", "Address at which the user reaches a manager: host[:port] (default: those the managers advertise)")
	f.StringVar(&i.description, "description", "", "What this cluster is")
	completeWords(cmd, "role", pki.Admin+"\tmay do everything", pki.Operator+"\tmay run services", pki.Viewer+"\tmay list and inspect")
}

// issueTo makes a user's context and writes it to its file, or to a pipe.
func (a *app) issueTo(ctx context.Context, name string, i issue) error {
	if !slices.Contains(pki.UserRoles, i.role) {
		return Usagef("unknown role %q: it is %s", i.role, strings.Join(pki.UserRoles, ", "))
	}
	if i.expiry <= 0 {
		return Usagef("--expiry must be above 0")
	}
	if strings.ContainsRune(name, filepath.Separator) {
		return Usagef("invalid name %q: it is a user's name, not a file's; --output names the file", name)
	}
	path, err := a.writeSecret(i.out, name, func() ([]byte, error) {
		c, err := a.issue(ctx, name, i)
		if err != nil {
			return nil, err
		}
		if i.addr != "" {
			c.Addr, c.Others = withPort(i.addr), nil
		}
		c.Description = i.description
		return c.Encode()
	})
	if err != nil || path == "" {
		return err
	}
	a.printf("%s\n", path)
	a.tellf("The file holds a private key: move it to %s's machine, there run `skep context import %s`, and keep no copy.\n", name, path)
	return nil
}

// issue makes a key, has it certified and puts the context together.
func (a *app) issue(ctx context.Context, name string, i issue) (conn.Context, error) {
	c := conn.Context{Name: name}
	key, csr, err := pki.NewKeyAndCSR()
	if err != nil {
		return c, fmt.Errorf("make a key for user %s: %w", name, err)
	}
	r, err := call(ctx, a, api.UserIssue, &skepv1.IssueUserRequest{Name: name, Role: i.role, CsrDer: csr, Expiry: durationpb.New(i.expiry), First: i.first})
	if err != nil {
		return c, err
	}
	if len(r.ManagerAddrs) == 0 {
		return c, errors.New("the cluster names no manager's address: give one with --addr")
	}
	c.Addr, c.Others = r.ManagerAddrs[0], r.ManagerAddrs[1:]
	c.Cert, c.Key, c.CA = string(r.CertPem), string(key), string(r.CaPem)
	if len(c.Others) == 0 {
		c.Others = nil
	}
	return c, nil
}

func withPort(addr string) string {
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return net.JoinHostPort(addr, "2377")
	}
	return addr
}

// writeSecret writes what make returns to a new file of mode 0600, or to a pipe when path is "-" (it then returns "").
// The file is made before anything is asked for, so that nothing is certified in vain.
func (a *app) writeSecret(path, name string, content func() ([]byte, error)) (string, error) {
	if path == "-" {
		if _, terminal := terminalOf(a.Out); terminal {
			return "", Usagef("refusing to print a private key on a terminal: redirect the output, or name a file with --output")
		}
		b, err := content()
		if err == nil {
			_, err = a.Out.Write(plain.JSON(b))
		}
		return "", err
	}
	if path == "" {
		path = name + contextExt
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("%s exists already: remove it, or name another file with --output", path)
	}
	if err != nil {
		return "", fmt.Errorf("write the context: %w", err)
	}
	b, err := content()
	if err == nil {
		_, err = f.Write(b)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = os.Remove(path) // half a context is of no use; err says what went wrong
		return "", err
	}
	return path, nil
}

func (a *app) contextExport() *cobra.Command {
	var out string
	cmd := &cobra.Command{Use: "export [OPTIONS] NAME", Short: "Write a context to a file, for another machine", Args: exactArgs(1), ValidArgsFunction: completeFirst(a.storedContexts),
		Long: "Write a context with its private key to a file that only you can read. `skep context import FILE` takes it in elsewhere.",
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := a.stored(args[0])
			if err != nil {
				return err
			}
			path, err := a.writeSecret(out, c.Name, c.Encode)
			if err == nil && path != "" {
				a.printf("%s\n", path)
			}
			return err
		}}
	cmd.Flags().StringVarP(&out, "output", "o", "", "File to write, or - for a pipe (default NAME"+contextExt+")")
	return cmd
}

// stored reads a context that has a file.
func (a *app) stored(name string) (conn.Context, error) {
	if name == conn.Local {
		return conn.Context{}, errors.New("context \"default\" is this machine's daemon and has no certificate: on a manager, `skep context issue NAME` makes one")
	}
	return a.store.Load(name)
}

func (a *app) contextImport() *cobra.Command {
	var addr, description string
	var use bool
	cmd := &cobra.Command{Use: "import [OPTIONS] FILE|- [NAME]", Short: "Take in a context from a file",
		Long: "Take in a context that `skep context issue` or `skep context export` wrote. NAME is what it is called here, by default what it was called there.",
		Args: func(cmd *cobra.Command, args []string) error {
			if err := minArgs(1)(cmd, args); err != nil {
				return err
			}
			return maxArgs(2)(cmd, args)
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return []string{contextExt[1:]}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: func(_ *cobra.Command, args []string) error {
			text, err := a.readFile(args[0])
			if err != nil {
				return err
			}
			c, err := conn.Parse(text)
			if err != nil {
				return err
			}
			if len(args) > 1 {
				c.Name = args[1]
			}
			if addr != "" {
				c.Addr, c.Others = withPort(addr), nil
			}
			if description != "" {
				c.Description = description
			}
			if err := a.store.Create(c); err != nil {
				return err
			}
			if _, _, end, err := c.User(); err == nil && end.Before(a.Now()) {
				a.warnf("the certificate of context %s expired on %s", c.Name, end.Local().Format("2006-01-02 15:04:05 MST"))
			}
			if use {
				if err := a.store.Use(c.Name); err != nil {
					return err
				}
			}
			a.printf("%s\n", c.Name)
			if !use && a.contextName() != c.Name {
				a.tellf("Use it with `skep --context %s …`, or from now on with `skep context use %s`.\n", c.Name, c.Name)
			}
			return nil
		}}
	f := cmd.Flags()
	f.StringVar(&addr, "addr", "", "Address at which to reach a manager from here: host[:port] (default: what the file says)")
	f.StringVar(&description, "description", "", "What this cluster is")
	f.BoolVar(&use, "use", false, "Use this context from now on")
	return cmd
}

// readFile reads a small file, or the standard input.
func (a *app) readFile(path string) ([]byte, error) {
	const most = 1 << 20
	in := a.In
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("read the context: %w", err)
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, most))
	if err != nil {
		return nil, fmt.Errorf("read the context from %s: %w", path, err)
	}
	return b, nil
}

// storedContexts completes the names of contexts that have a file.
func (a *app) storedContexts(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	names, err := a.store.List()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
