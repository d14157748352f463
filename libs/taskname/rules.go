package taskname

import (
	"errors"
	"regexp"
	"strings"

	"skep.dev/libs/boundtemplate"
)

// Limit is how large a name that is filled in may be, bytes: an environment variable is the largest.
const Limit = 64 << 10

// Example fills Names for a task that does not exist yet, of a service with its real name and labels. What it makes of a
// template is as short as what any node makes.
func Example(service string, labels map[string]string) Names {
	var n Names
	n.Service.ID, n.Service.Name, n.Service.Labels = "s", service, labels
	n.Node.ID, n.Node.Hostname = "n", "n"
	n.Node.Platform.Architecture, n.Node.Platform.OS = "amd64", "linux"
	n.Task.ID, n.Task.Slot = "t", "1"
	n.Task.Name = service + ".1.t"
	return n
}

// Literal is how a text with braces is written that is to arrive as it is.
func Literal(text string) string { return strings.ReplaceAll(text, "{{", `{{"{{"}}`) }

// parsed reads a template by the rules that managers and nodes have in common: what could hang or fill either is refused.
func parsed(text string) (*boundtemplate.Template, error) {
	t, err := boundtemplate.Parse(text, boundtemplate.Bounds{Output: Limit, Loops: 1}, nil)
	var loop *boundtemplate.LoopError
	switch {
	case errors.As(err, &loop):
		return nil, errors.New("a loop goes over a field, such as .Service.Labels, and stands in no other loop")
	case err != nil:
		return nil, errors.New(saying(err))
	}
	return t, nil
}

var place = regexp.MustCompile(`^template: :\d+(?::\d+)?: `)

// saying is what text/template says, without the place in a text that is one line mostly and stands beside it.
func saying(err error) string { return place.ReplaceAllString(err.Error(), "") }
