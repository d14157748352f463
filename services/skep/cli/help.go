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
