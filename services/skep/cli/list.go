package cli

import (
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"skep.dev/services/skep/cli/render"
)

// taskFilters are what lists of tasks can be filtered by.
var taskFilters = []string{"id", "name", "label", "service", "node", "desired-state"}

// listFlags are what every list has.
type listFlags struct {
	filters []string
	format  string
	quiet   bool
	json    bool
	noTrunc bool
}

// add adds them; what is what --quiet shows, keys what --filter knows.
func (l *listFlags) add(cmd *cobra.Command, what string, keys ...string) {
	f := cmd.Flags()
	f.StringArrayVarP(&l.filters, "filter", "f", nil, "Show only what matches: key=value, key one of "+strings.Join(keys, ", "))
	if len(keys) == 0 {
		_ = f.MarkHidden("filter") // it exists: two lines above
	}
	var words []string
	for _, k := range keys {
		words = append(words, k+"=")
	}
	_ = cmd.RegisterFlagCompletionFunc("filter", cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoSpace|cobra.ShellCompDirectiveNoFileComp))
	f.StringVar(&l.format, "format", "", `"table", "table TEMPLATE", "json" or a Go template`)
	f.BoolVarP(&l.quiet, "quiet", "q", false, "Show only "+what)
	f.BoolVar(&l.json, "json", false, "Print skep's own objects, as one JSON document (a stable form)")
	f.BoolVar(&l.noTrunc, "no-trunc", false, "Do not cut long values short")
}

func printList[M proto.Message](a *app, l *listFlags, objs []M, t *render.Table) error {
	if l.json {
		return render.JSON(a.Out, objs)
	}
	t.Wide = l.noTrunc
	return t.Print(a.Out, l.format, l.quiet)
}
