package cli

import (
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"skep.dev/services/skep/cli/render"
)

// listFlags are what every list has.
type listFlags struct {
	filters []string
	format  string
	quiet   bool
	json    bool
	noTrunc bool
}

func (l *listFlags) add(cmd *cobra.Command, what string) {
	f := cmd.Flags()
	f.StringArrayVarP(&l.filters, "filter", "f", nil, "Show only what matches: key=value")
	f.StringVar(&l.format, "format", "", `"table", "table TEMPLATE", "json" or a Go template`)
	f.BoolVarP(&l.quiet, "quiet", "q", false, "Show only "+what)
	f.BoolVar(&l.json, "json", false, "Print skep's own objects, as one JSON document (a stable form)")
	f.BoolVar(&l.noTrunc, "no-trunc", false, "Do not cut long values short")
}

func printList[M proto.Message](a *app, l *listFlags, objs []M, t *render.Table) error {
	if l.json {
		return render.JSON(a.Out, objs)
	}
	return t.Print(a.Out, l.format, l.quiet)
}
