package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"skep.dev/services/skep/cli"
	"skep.dev/services/skep/node"
)

var update = flag.Bool("update", false, "write docs/cli.md anew")

// docs/cli.md has every command and every flag, as --help tells of them: `go test ./cmd/skep -update` in services/skep writes it.
func TestReferenceIsWhatHelpSays(t *testing.T) {
	root := cli.New(cli.Env{Getenv: func(string) string { return "" }, NodeCommands: node.Commands})
	var b strings.Builder
	b.WriteString("# Every command and its options\n\nWritten from `skep --help` and the help of each command (`go test ./cmd/skep -update` in services/skep); what they are for is in the other pages.\n\n" +
		"Exit status: 0 done, 1 error, 2 the command was written wrong, 3 rolled back, 4 timed out, 5 done everywhere but on nodes that are away, 130 interrupted.\n\n## Options of every command\n\n")
	options(&b, root.PersistentFlags())
	reference(&b, root)
	path := filepath.Join("..", "..", "..", "..", "docs", "cli.md")
	if *update {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != b.String() {
		t.Errorf("%s is not what the commands' help says: go test ./cmd/skep -update", path)
	}
}

// reference writes a command and those below it.
func reference(b *strings.Builder, c *cobra.Command) {
	if c.HasParent() && c.Runnable() && !c.HasAvailableSubCommands() {
		fmt.Fprintf(b, "## %s\n\n", c.CommandPath())
		text := c.Long
		if text == "" {
			text = c.Short
		}
		fmt.Fprintf(b, "    %s\n\n", c.UseLine())
		if fenced := strings.Contains(text, "\n"); fenced {
			fmt.Fprintf(b, "%s.\n\n```text\n%s\n```\n\n", c.Short, strings.TrimSpace(text))
		} else {
			fmt.Fprintf(b, "%s.\n\n", strings.TrimSuffix(text, "."))
		}
		options(b, c.LocalNonPersistentFlags())
	}
	for _, s := range c.Commands() {
		if s.IsAvailableCommand() {
			reference(b, s)
		}
	}
}

func options(b *strings.Builder, f *pflag.FlagSet) {
	begun := false
	f.VisitAll(func(o *pflag.Flag) {
		if o.Hidden || o.Name == "help" {
			return
		}
		if !begun {
			b.WriteString("| option | |\n|---|---|\n")
			begun = true
		}
		name, usage := pflag.UnquoteUsage(o)
		text := "`--" + o.Name
		if name != "" {
			text += " " + name
		}
		text += "`"
		if o.Shorthand != "" {
			text = "`-" + o.Shorthand + "`, " + text
		}
		switch o.DefValue {
		case "", "false", "0", "[]", "0s":
		default:
			if !strings.Contains(usage, "default") {
				usage += " (default " + o.DefValue + ")"
			}
		}
		fmt.Fprintf(b, "| %s | %s |\n", text, strings.NewReplacer("|", `\|`, "<", "&lt;", "\n", " ").Replace(usage))
	})
	if begun {
		b.WriteString("\n")
	}
}
