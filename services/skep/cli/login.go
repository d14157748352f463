package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"skep.dev/libs/seal"
	"skep.dev/libs/spec"
	"skep.dev/services/skep/cli/hidden"
	"skep.dev/services/skep/cli/login"
)

// loginFlags say who logs in where.
type loginFlags struct {
	user     string
	password string
	stdin    bool
	plain    bool
	ca       string
}

func (a *app) loginCommand() *cobra.Command {
	var l loginFlags
	cmd := &cobra.Command{Use: "login [OPTIONS] [SERVER]", Short: "Log in to an image registry", Args: cobra.MaximumNArgs(1), ValidArgsFunction: completeFirst(a.completeLogins),
		Long: "Log in to an image registry, by default Docker's own. The registry is asked whether it takes the password; then it is kept where Docker keeps it: with the " +
			"credential helper that ~/.docker/config.json names, else in that file (DOCKER_CONFIG is another directory for it).\n\n" +
			"Services get it with `skep service create --with-registry-auth` and `skep service update --with-registry-auth`, sealed.",
		Example: "  skep login registry.example.com:5000\n  printf %s \"$TOKEN\" | skep login -u ci --password-stdin registry.example.com",
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("password") {
				return Usagef("--password: every user of this machine can read the arguments of a command, and the shell keeps them: use --password-stdin, or type it; and change this password")
			}
			server := ""
			if len(args) > 0 {
				server = args[0]
			}
			host, err := login.Host(server)
			if err != nil {
				return &Failure{ExitUsage, err}
			}
			return a.logIn(cmd.Context(), host, &l)
		}}
	f := cmd.Flags()
	f.StringVarP(&l.user, "username", "u", "", "User")
	f.BoolVar(&l.stdin, "password-stdin", false, "Take the password from standard input")
	f.StringVarP(&l.password, "password", "p", "", "Refused: arguments are seen by every user of the machine")
	f.BoolVar(&l.plain, "plain-http", false, "Speak HTTP without TLS: whoever is in between reads the password")
	f.StringVar(&l.ca, "ca", "", "File with the CA that vouches for the registry's certificate (default: the system's)")
	return cmd
}

func (a *app) logoutCommand() *cobra.Command {
	return &cobra.Command{Use: "logout [SERVER]", Short: "Log out from an image registry", Args: cobra.MaximumNArgs(1), ValidArgsFunction: completeFirst(a.completeLogins),
		Long:    "Forget the password of an image registry, by default Docker's own. Services keep what they were given until they are updated.",
		Example: "  skep logout registry.example.com:5000",
		RunE: func(cmd *cobra.Command, args []string) error {
			server := ""
			if len(args) > 0 {
				server = args[0]
			}
			host, err := login.Host(server)
			if err != nil {
				return &Failure{ExitUsage, err}
			}
			file, _, err := a.logins()
			if err != nil {
				return err
			}
			had, err := file.Erase(cmd.Context(), host)
			if err != nil {
				return fmt.Errorf("log out from %s: %w", host, err)
			}
			if !had {
				a.printf("Not logged in to %s\n", host)
				return nil
			}
			a.printf("Removing login credentials for %s\n", host)
			return nil
		}}
}

func (a *app) logIn(ctx context.Context, host string, l *loginFlags) error {
	_, terminal := terminalOf(a.In)
	switch {
	case l.stdin && l.user == "":
		return Usagef("must provide --username with --password-stdin")
	case l.plain && l.ca != "":
		return Usagef("--plain-http and --ca conflict: without TLS there is no certificate")
	}
	file, path, err := a.logins()
	if err != nil {
		return err
	}
	registry := login.Registry{Host: host, PlainHTTP: l.plain, CA: l.ca, Agent: "skep/" + a.Version}
	var had login.Credentials
	if !l.stdin {
		if had, err = file.Get(ctx, host); err != nil {
			return err
		}
	}
	if !had.Empty() && (l.user == "" || l.user == had.Username) {
		a.tellf("Authenticating with existing credentials...\n")
		err := registry.Verify(ctx, had)
		if err == nil {
			a.printf("Login Succeeded\n")
			return nil
		}
		if !login.Refused(err) || !terminal {
			return err
		}
		a.tellf("Login did not succeed: %v\n", err)
	}
	if !l.stdin && !terminal {
		return &Failure{ExitError, errors.New("cannot log in without a terminal: use --username and --password-stdin")}
	}
	c := login.Credentials{Username: l.user}
	password, err := a.askLogin(ctx, &c, had.Username, l.stdin)
	if err != nil {
		return err
	}
	defer seal.Wipe(password)
	c.Password = string(password)
	if c.Empty() {
		return &Failure{ExitError, errors.New("a user and a password are needed, and one is empty")}
	}
	if err := registry.Verify(ctx, c); err != nil {
		return err
	}
	clear, err := file.Put(ctx, host, c)
	if err != nil {
		return err
	}
	if clear {
		a.warnf("the password is kept unencrypted in %s; a credential helper would not, see docs/registries.md", path)
	}
	a.printf("Login Succeeded\n")
	return nil
}

// askLogin takes the password from standard input, or asks the terminal for it and for the user.
func (a *app) askLogin(ctx context.Context, c *login.Credentials, former string, stdin bool) ([]byte, error) {
	if stdin {
		b, err := io.ReadAll(io.LimitReader(a.In, spec.MaxRegistry))
		if err != nil {
			return nil, fmt.Errorf("read the password from standard input: %w", err)
		}
		return bytes.TrimSuffix(bytes.TrimSuffix(b, []byte("\n")), []byte("\r")), nil
	}
	if c.Username == "" {
		if former != "" {
			a.tellf("Username (%s): ", former)
		} else {
			a.tellf("Username: ")
		}
		line, err := hidden.Interruptible(ctx, func() (string, error) { return readLine(a.In) })
		if err != nil {
			return nil, err
		}
		if c.Username = strings.TrimSpace(line); c.Username == "" {
			c.Username = former
		}
		if c.Username == "" {
			return nil, &Failure{ExitError, errors.New("a user is needed")}
		}
	}
	fd, _ := terminalOf(a.In)
	b, err := a.askHidden(ctx, fd, "Password: ")
	if err != nil {
		return nil, fmt.Errorf("read the password: %w", err)
	}
	return b, nil
}

// readLine reads a line and nothing behind it: that is the password's.
func readLine(r io.Reader) (string, error) {
	var line []byte
	b := make([]byte, 1)
	for len(line) < 1024 {
		n, err := r.Read(b)
		if n > 0 && b[0] == '\n' {
			break
		}
		line = append(line, b[:n]...)
		if err != nil {
			return "", fmt.Errorf("read the user: %w", err)
		}
	}
	return string(line), nil
}

func (a *app) completeLogins(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.completion(func(context.Context) ([]string, error) {
		f, _, err := a.logins()
		if err != nil {
			return nil, err
		}
		return f.Hosts(), nil
	}, args)
}
