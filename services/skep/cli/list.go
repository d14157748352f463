package cli

import (
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"skep.dev/services/skep/cli/render"
)

// taskFilters are what lists of tasks can be filtered by.
var taskFilters = []string{"id", "name", "label", "service", "node", "desired-state=running|shutdown|accepted|ready|complete|remove"}

// listFlags are what every list has.
type listFlags struct {
	filters filterFlag
	format  string
	quiet   bool
	json    bool
	noTrunc bool
}

// add adds them; what is what --quiet shows, keys what --filter knows (see filterFlag); a list without keys has no --filter.
func (l *listFlags) add(cmd *cobra.Command, what string, keys ...string) {
	f := cmd.Flags()
	if len(keys) > 0 {
		l.filters.add(cmd, keys...)
	}
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
