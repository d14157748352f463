package cli

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"skep.dev/libs/fault"
	"skep.dev/libs/typo"
	"skep.dev/services/skep/cli/plain"
	"skep.dev/services/skep/cli/render"
	"skep.dev/services/skep/cli/specflag"
)

// Exit statuses.
const (
	ExitOK         = 0
	ExitError      = 1
	ExitUsage      = 2
	ExitRolledBack = 3
	ExitTimeout    = 4
	ExitAway       = 5 // done everywhere but on nodes that are down or paused
	ExitCancelled  = 130
)

// Failure carries the status a command ends with; an error without one ends with ExitError. A nil Err prints nothing.
type Failure struct {
	Code int
	Err  error
}

func (e *Failure) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit status %d", e.Code)
	}
	return e.Err.Error()
}

// Unwrap is the error behind the status.
func (e *Failure) Unwrap() error { return e.Err }

// Usagef is an error in how the command was written: exit status 2.
func Usagef(format string, a ...any) error {
	return &Failure{ExitUsage, fmt.Errorf(format, a...)}
}

// usageError also prints how the command is used.
type usageError struct {
	cmd  *cobra.Command
	text string
}

func (e *usageError) Error() string { return e.text }

// report prints what went wrong and returns the exit status.
func report(w *plain.Writer, cmd *cobra.Command, err error) int {
	if err == nil {
		return ExitOK
	}
	var (
		ue *usageError
		ee *Failure
		fe *render.ErrFormat
	)
	switch {
	case errors.As(err, &ue):
		plain.Notef(w, "Error: %s\n\nUsage:  %s\n\nRun '%s --help' for more information\n", ue.text, useLine(ue.cmd), ue.cmd.CommandPath())
		return ExitUsage
	case errors.As(err, &ee):
		if ee.Err != nil {
			tell(w, ee.Err)
		}
		return ee.Code
	case errors.Is(err, specflag.ErrInvalid), errors.As(err, &fe), fault.Is(err, fault.CodeUsage):
		tell(w, err)
		return ExitUsage
	case errors.Is(err, context.Canceled):
		tell(w, errors.New("cancelled"))
		return ExitCancelled
	}
	tell(w, err)
	return ExitError
}

// tell prints an error. Where several things failed, each gets a line.
func tell(w *plain.Writer, err error) {
	var l list
	if errors.As(err, &l) && err.Error() == l.Error() {
		for _, e := range l {
			tell(w, e)
		}
		return
	}
	prefix := "Error: "
	for _, line := range plain.Lines(err) {
		plain.Notef(w, "%s%s\n", prefix, line)
		prefix = ""
	}
}

func useLine(cmd *cobra.Command) string {
	if cmd.HasAvailableSubCommands() && !cmd.HasParent() {
		return cmd.CommandPath() + " [OPTIONS] COMMAND"
	}
	if cmd.HasAvailableSubCommands() {
		return cmd.CommandPath() + " COMMAND"
	}
	return cmd.UseLine()
}

// flagError turns a mistake in a flag into a usage error, with the flag that was probably meant.
func flagError(cmd *cobra.Command, err error) error {
	if errors.Is(err, pflag.ErrHelp) {
		return err
	}
	text := rawNumber.ReplaceAllStringFunc(err.Error(), func(m string) string {
		if strings.HasPrefix(m, "strconv.ParseBool") {
			return "use true or false"
		}
		return "use a whole number that fits"
	})
	if cmd.Flags().Lookup("mount") != nil && strings.HasPrefix(text, "unknown shorthand flag: 'v'") {
		text += "; a service's volumes and folders are --mount source=NAME,target=/PATH or --mount type=bind,source=/FOLDER,target=/PATH"
	}
	if name, ok := strings.CutPrefix(text, "unknown flag: --"); ok {
		if s := closestFlag(cmd, name); s != "" {
			text += fmt.Sprintf("; did you mean --%s?", s)
		}
	}
	return &usageError{cmd, text}
}

// rawNumber is how Go's parsers say that they could not read a value.
var rawNumber = regexp.MustCompile(`strconv\.Parse\w+: parsing ".*": [a-z ]+$`)

func closestFlag(cmd *cobra.Command, name string) string {
	best, bestAt := "", 3
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		d := typo.Distance(name, f.Name, 2)
		if strings.HasPrefix(f.Name, name) {
			d = min(d, 1)
		}
		// On update a list flag has two forms: --publish is meant to be --publish-add.
		if f.Name == name+"-add" {
			d = 0
		}
		if d < bestAt {
			best, bestAt = f.Name, d
		}
	})
	return best
}

// unknownCommand is the argument check of a command that only groups others.
func unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	text := fmt.Sprintf("unknown command: %s %s", cmd.CommandPath(), args[0])
	if s := closestCommand(cmd, args[0]); s != "" {
		text += fmt.Sprintf("; did you mean %q?", s)
	}
	return &usageError{cmd, text}
}

func closestCommand(cmd *cobra.Command, name string) string {
	best, bestAt := "", 3
	for _, c := range cmd.Commands() {
		if !c.IsAvailableCommand() {
			continue
		}
		for _, n := range append([]string{c.Name()}, c.Aliases...) {
			d := typo.Distance(name, n, 2)
			if strings.HasPrefix(n, name) {
				d = min(d, 1)
			}
			if d < bestAt && d < max(len(n), 2) {
				best, bestAt = c.Name(), d
			}
		}
	}
	return best
}

// group is a command that only holds others.
func group(name, short string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: name, Short: short, Args: unknownCommand, RunE: showHelp}
	c.AddCommand(subs...)
	return c
}

func plural(n int) string {
	if n == 1 {
		return "argument"
	}
	return "arguments"
}

// argumentsAreUsage gives wrong arguments exit status 2 and the usage line in every command, also in those of other packages, which
// check theirs with cobra's own functions.
func argumentsAreUsage(cmd *cobra.Command) {
	for _, c := range cmd.Commands() {
		argumentsAreUsage(c)
	}
	check := cmd.Args
	if check == nil {
		return
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		err := check(cmd, args)
		if ue := (*usageError)(nil); err == nil || errors.As(err, &ue) {
			return err
		}
		text := err.Error()
		if strings.HasPrefix(text, "unknown command ") && !cmd.HasSubCommands() {
			text = "accepts no arguments"
		}
		return &usageError{cmd, fmt.Sprintf("'%s' %s", cmd.CommandPath(), text)}
	}
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return &usageError{cmd, fmt.Sprintf("'%s' accepts no arguments", cmd.CommandPath())}
}

func exactArgs(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == n {
			return nil
		}
		return &usageError{cmd, fmt.Sprintf("'%s' requires %d %s", cmd.CommandPath(), n, plural(n))}
	}
}

func minArgs(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) >= n {
			return nil
		}
		return &usageError{cmd, fmt.Sprintf("'%s' requires at least %d %s", cmd.CommandPath(), n, plural(n))}
	}
}

func maxArgs(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) <= n {
			return nil
		}
		return &usageError{cmd, fmt.Sprintf("'%s' requires at most %d %s", cmd.CommandPath(), n, plural(n))}
	}
}

// each runs f for every argument and goes on after an error; all errors are told.
func (a *app) each(ctx context.Context, args []string, f func(ref string) error) error {
	var errs []error
	for _, ref := range args {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := f(ref); err != nil {
			if fault.Is(err, fault.CodeUnavailable) || fault.Is(err, fault.CodeDenied) && a.nc == nil {
				return err
			}
			errs = append(errs, err)
		}
	}
	return joined(errs)
}

// list is several errors, each of which gets a line of its own.
type list []error

func (l list) Error() string {
	var texts []string
	for _, e := range l {
		texts = append(texts, e.Error())
	}
	return strings.Join(texts, "; ")
}

// joined keeps a single error as it is and makes a list of several; the worst exit status wins.
func joined(errs []error) error {
	switch len(errs) {
	case 0:
		return nil
	case 1:
		return errs[0]
	}
	code := 0
	for _, e := range errs {
		var ee *Failure
		if errors.As(e, &ee) {
			code = max(code, ee.Code)
		} else {
			code = max(code, ExitError)
		}
	}
	return &Failure{code, list(errs)}
}
