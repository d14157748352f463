package cli

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// usageTemplate is cobra's with one usage line a command instead of two for those that group others.
var usageTemplate = strings.Replace((&cobra.Command{}).UsageTemplate(),
	"Usage:{{if .Runnable}}\n  {{.UseLine}}{{end}}{{if .HasAvailableSubCommands}}\n  {{.CommandPath}} [command]{{end}}",
	"Usage:\n  {{if and .HasAvailableSubCommands .HasParent}}{{.CommandPath}} COMMAND{{else}}{{.UseLine}}{{end}}", 1)

// tidy gives every command of the tree one form of help, also those that come from elsewhere.
func tidy(c *cobra.Command) {
	c.DisableFlagsInUseLine = true // every use line says where options go
	c.LocalFlags().VisitAll(func(f *pflag.Flag) {
		r, n := utf8.DecodeRuneInString(f.Usage)
		if word, _, _ := strings.Cut(f.Usage, " "); unicode.IsLower(r) && word != "help" {
			f.Usage = string(unicode.ToUpper(r)) + f.Usage[n:]
		}
	})
	for _, s := range c.Commands() {
		tidy(s)
	}
}

// strict makes errors of what cobra's own commands answer with a page of help and success: topics and shells there are not.
func strict(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		switch c.Name() {
		case "help":
			show := c.Run
			c.Run, c.RunE = nil, func(cmd *cobra.Command, args []string) error {
				if found, rest, err := root.Find(args); err != nil || len(rest) > 0 {
					return unknownCommand(found, append(rest, args...))
				}
				show(cmd, args)
				return nil
			}
		case "completion":
			c.Args, c.RunE = nil, func(cmd *cobra.Command, args []string) error {
				if len(args) > 0 {
					return &usageError{cmd, "no completion for shell " + args[0] + ": use bash, zsh, fish or powershell"}
				}
				return cmd.Help()
			}
		}
	}
}
