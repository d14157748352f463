package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"skep.dev/libs/compose"
	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

// fileFlags say which compose files to read, and how.
type fileFlags struct {
	files, envFiles, profiles []string
	ignore                    bool
}

func (f *fileFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringArrayVarP(&f.files, "compose-file", "c", nil, "A compose file, or - for standard input; what a later one says is merged over those before it")
	fl.StringArrayVar(&f.envFiles, "env-file", nil, "A file of variables for ${NAME}, instead of .env beside the first compose file")
	fl.StringArrayVar(&f.profiles, "profile", nil, "Take in the services of a profile, or of all with *")
	fl.BoolVar(&f.ignore, "ignore-unsupported", false, "Warn of what cannot be done, instead of refusing the file")
	_ = cmd.MarkFlagFilename("compose-file", "yml", "yaml")
	_ = cmd.MarkFlagFilename("env-file")
}

// load reads the files, and warns of what they say and is read otherwise. What is wrong with them is wrong usage: nothing
// was asked of the cluster yet.
func (f *fileFlags) load(ctx context.Context, a *app, name string) (*compose.Stack, error) {
	if len(f.files) == 0 {
		return nil, Usagef("no compose file: name it with -c compose.yaml, or -c - for standard input")
	}
	files, in, closeIn, err := substituted(f.files, a.In)
	if err != nil {
		return nil, err
	}
	defer closeIn()
	s, err := compose.Load(ctx, compose.Options{Files: files, Stdin: in, Stack: name, Env: os.Environ(), EnvFiles: f.envFiles, Profiles: f.profiles, IgnoreUnsupported: f.ignore})
	var problems compose.Problems
	if errors.As(err, &problems) {
		var lines list
		for _, p := range problems {
			lines = append(lines, errors.New(p.String()))
		}
		return nil, &Failure{ExitUsage, lines}
	}
	if fault.Is(err, fault.CodeInvalid) {
		return nil, &Failure{ExitUsage, err}
	}
	if err != nil {
		return nil, err
	}
	for _, n := range s.Notes {
		a.warnf("%s", n.String())
	}
	return s, nil
}

// substituted takes what a shell puts in the place of <(command), a pipe of its own, for standard input.
func substituted(files []string, in io.Reader) ([]string, io.Reader, func(), error) {
	at := slices.IndexFunc(files, func(name string) bool {
		st, err := os.Stat(name)
		return err == nil && strings.HasPrefix(name, "/dev/fd/") && st.Mode()&os.ModeNamedPipe != 0
	})
	if at < 0 || slices.Contains(files, "-") {
		return files, in, func() {}, nil
	}
	f, err := os.Open(files[at])
	if err != nil {
		return nil, nil, nil, fmt.Errorf("read what the command writes: %w", err)
	}
	files = slices.Clone(files)
	files[at] = "-"
	return files, f, func() { _ = f.Close() }, nil
}

func (a *app) stackConfig() *cobra.Command {
	var f fileFlags
	cmd := &cobra.Command{Use: "config [OPTIONS] [STACK]", Short: "Print the compose file that a deploy would read: merged, and with its variables filled in", Args: maxArgs(1),
		Long: "Print the compose file that a deploy would read: all files merged, variables filled in, every value in its long form. The cluster is not asked.\n" +
			"The name of the stack matters where the file uses it.",
		Example: "  skep stack config -c compose.yaml -c production.yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			name := "stack"
			if len(args) > 0 {
				name = args[0]
			}
			if err := stackNames([]string{name}); err != nil {
				return err
			}
			s, err := f.load(cmd.Context(), a, name)
			if err != nil {
				return err
			}
			text, err := compose.Marshal(s)
			if err != nil {
				return err
			}
			_, err = a.Out.Write(text)
			return err
		}}
	f.add(cmd)
	return cmd
}

// externals refuses a stack that uses what does not exist, each with its place in the file.
func (a *app) externals(ctx context.Context, s *compose.Stack) error {
	var errs []error
	for _, x := range s.External {
		has, err := a.exists(ctx, x)
		if err != nil {
			return err
		}
		if !has {
			create := "skep " + x.Kind + " create " + x.Name
			if x.Kind == "network" {
				create = "skep network create --driver overlay " + x.Name
			}
			errs = append(errs, fault.NotFound("%s: %s %s is external and does not exist: make it with `%s`, or take `external` away", x.Where, x.Kind, x.Name, create))
		}
	}
	return joined(errs)
}

func (a *app) exists(ctx context.Context, x compose.External) (bool, error) {
	switch x.Kind {
	case "network":
		list, err := a.networks(ctx, filter("name", x.Name))
		return slices.ContainsFunc(list, func(n *skepv1.Network) bool { return strings.EqualFold(n.GetSpec().GetName(), x.Name) }), err
	case "secret", "config":
		k := aSecret
		if x.Kind == aConfig.word {
			k = aConfig
		}
		list, err := a.secrets(ctx, k, filter("names", x.Name))
		return slices.ContainsFunc(list, func(s *skepv1.Secret) bool { return s.GetSpec().GetName() == x.Name }), err
	}
	return true, nil
}
