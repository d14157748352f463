package cli

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"

	skepv1 "skep.dev/proto/skep/v1"
)

// filterFlag is --filter key=value, which may be given again: the only place where a command line's filters are read and refused.
// What it knows are keys, "name", and those with the only values there are, "mode=replicated|global".
type filterFlag struct {
	given []string
	keys  []string
	only  map[string][]string
}

// add adds the flag to a command that lists, with the keys it knows.
func (f *filterFlag) add(cmd *cobra.Command, known ...string) {
	f.addAs(cmd, "f", "Show only what matches", known...)
}

// addAs is add for a command that does more than show.
func (f *filterFlag) addAs(cmd *cobra.Command, short, what string, known ...string) {
	f.only = map[string][]string{}
	var words []string
	for _, k := range known {
		key, values, closed := strings.Cut(k, "=")
		f.keys = append(f.keys, key)
		if !closed {
			words = append(words, key+"=")
			continue
		}
		f.only[key] = strings.Split(values, "|")
		for _, v := range f.only[key] {
			words = append(words, key+"="+v)
		}
	}
	cmd.Flags().StringArrayVarP(&f.given, "filter", short, nil, what+": key=value, key one of "+strings.Join(f.keys, ", "))
	_ = cmd.RegisterFlagCompletionFunc("filter", cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoSpace|cobra.ShellCompDirectiveNoFileComp)) // the flag is two lines above
}

// parse turns what was given into the API's form, same keys together. A key there is not, or a value that cannot occur, is an error
// of usage: it would otherwise match nothing, or be waited for without end.
func (f *filterFlag) parse() ([]*skepv1.Filter, error) {
	var out []*skepv1.Filter
next:
	for _, g := range f.given {
		k, v, ok := strings.Cut(g, "=")
		k, v = strings.ToLower(strings.TrimSpace(k)), strings.TrimSpace(v)
		if !ok || k == "" {
			return nil, Usagef("invalid filter '%s': filters are key=value", g)
		}
		if !slices.Contains(f.keys, k) {
			return nil, Usagef("invalid filter '%s': use %s", k, strings.Join(f.keys, ", "))
		}
		if only := f.only[k]; only != nil && !slices.ContainsFunc(only, func(o string) bool { return strings.EqualFold(o, v) }) {
			return nil, Usagef("invalid filter '%s=%s': use %s", k, v, strings.Join(only, ", "))
		}
		for _, o := range out {
			if o.Key == k {
				o.Values = append(o.Values, v)
				continue next
			}
		}
		out = append(out, filter(k, v))
	}
	return out, nil
}

func filter(key string, values ...string) *skepv1.Filter {
	return &skepv1.Filter{Key: key, Values: values}
}
