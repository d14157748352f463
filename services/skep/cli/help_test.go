package cli

import (
	"strings"
	"testing"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"skep.dev/services/skep/cli/golden"
)

// TestHelpIsTidy: pflag takes the first word in backquotes of a flag's text for its value's name, which is a surprise
// when a command is quoted there.
func TestHelpIsTidy(t *testing.T) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			name, text := pflag.UnquoteUsage(f)
			switch r := []rune(text + " ")[0]; {
			case strings.Contains(name, " "):
				t.Errorf("%s --%s: the value is called %q", c.CommandPath(), f.Name, name)
			case unicode.IsLower(r) && f.Name != "help" && f.Name != "version":
				t.Errorf("%s --%s: begins in lower case: %s", c.CommandPath(), f.Name, text)
			case strings.HasSuffix(text, "."), strings.Contains(text, " a u"), strings.Contains(text, "  "):
				t.Errorf("%s --%s: %s", c.CommandPath(), f.Name, text)
			}
		})
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: %q", c.CommandPath(), c.Short)
		}
		for _, s := range c.Commands() {
			walk(s)
		}
	}
	walk(New(Env{Getenv: func(string) string { return "" }}))
}

func TestHelpGolden(t *testing.T) {
	c := newCluster(t)
	var b strings.Builder
	for _, args := range [][]string{{"--help"}, {"context", "--help"}, {"context", "issue", "--help"}, {"context", "import", "--help"}, {"node", "ls", "--help"},
		{"user", "create", "--help"}, {"user", "ls", "--help"}, {"audit", "--help"}, {"network", "--help"}, {"network", "create", "--help"}, {"network", "prune", "--help"}, {"mesh", "ls", "--help"}, {"mesh", "trace", "--help"}, {"doctor", "--help"},
		{"stack", "--help"}, {"stack", "deploy", "--help"}, {"stack", "diff", "--help"}} {
		b.WriteString("$ skep " + strings.Join(args, " ") + "\n" + c.run(args...).out + "\n")
	}
	golden.Check(t, "help", b.String())
}
