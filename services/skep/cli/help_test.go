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

// What does not exist is an error of usage, with what there is.
func TestStrictHelp(t *testing.T) {
	c := newCluster(t)
	for line, want := range map[string]string{
		"help nosuch": "unknown command: skep nosuch", "help service nosuch": "unknown command: skep service nosuch", "completion tcsh": "use bash, zsh, fish or powershell",
		"service create --init=maybe img": `"maybe"`, "service ls -q=maybe": "use true or false", "service create -v a:b img": "--mount source=NAME,target=/PATH",
	} {
		if r := c.run(strings.Fields(line)...); r.code != ExitUsage || !strings.Contains(r.err, want) || strings.Contains(r.err, "strconv") {
			t.Errorf("%s: %d %s", line, r.code, r.err)
		}
	}
	for _, line := range []string{"help", "help service create", "completion", "help completion"} {
		if r := c.run(strings.Fields(line)...); r.code != 0 {
			t.Errorf("%s: %d %s", line, r.code, r.err)
		}
	}
}

// Options after the image are the containers' command, and that is said where they look like the command's own.
func TestOptionsAfterTheImage(t *testing.T) {
	c := newCluster(t)
	if r := c.run("service", "create", "-d", "img", "--name", "x"); !strings.Contains(r.err, "Warning: --name stands after the image") {
		t.Errorf("%d %s", r.code, r.err)
	}
	if r := c.run("service", "create", "-d", "img", "--character-set-server=utf8"); strings.Contains(r.err, "stands after the image") {
		t.Errorf("%d %s", r.code, r.err)
	}
}
