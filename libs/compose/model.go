package compose

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/template"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/google/shlex"
	"github.com/sirupsen/logrus"
	"go.yaml.in/yaml/v4"
)

func itoa(i int) string { return strconv.Itoa(i) }

// merge has compose-go make one model of all the files, and repairs what it would read otherwise than Docker.
func (l *loading) merge(ctx context.Context) {
	main := Where{File: l.mains[0].name}
	defer quiet()()
	defer func() {
		if p := recover(); p != nil { // files of strangers: a fault of the library must not end the program
			l.wrong(main, "", "the compose library failed on these files: %v", p)
		}
	}()
	details := types.ConfigDetails{WorkingDir: l.dir, Environment: maps.Clone(l.env)}
	for _, d := range l.mains {
		content, err := yaml.Marshal(plain(d.root))
		if err != nil {
			l.wrong(Where{File: d.name}, "", "cannot write it for merging: %v", err)
			return
		}
		path := d.path
		if path == "" {
			path = "-"
		}
		details.ConfigFiles = append(details.ConfigFiles, types.ConfigFile{Filename: path, Content: content})
	}
	options := func(o *loader.Options) {
		o.SetProjectName(l.projectName(), true)
		o.Profiles = l.o.Profiles
		o.SkipValidation = true       // each file was validated, with places
		o.SkipNormalization = true    // it adds what nobody wrote
		o.SkipDefaultValues = true    // the same
		o.SkipConsistencyCheck = true // Swarm has rules of its own
		o.SkipResolveEnvironment, o.SkipResolveLabels = true, true
		o.MaxNodeVisits = 2 * maxNodes
		o.Interpolate.TypeCastMapping = casts()
		o.Interpolate.Substitute = func(s string, m template.Mapping) (string, error) {
			return template.SubstituteWithOptions(s, m, template.WithoutLogging)
		}
	}
	dict, err := loader.LoadModelWithContext(ctx, details, options)
	if err != nil {
		l.library(err)
		return
	}
	delete(dict, "version")
	l.dict = dict
	l.repair()
	if len(l.problems) > 0 {
		return
	}
	l.out.model = clone(dict).(map[string]any)
	l.project, err = loader.ModelToProject(clone(dict).(map[string]any), loader.ToOptions(&details, []func(*loader.Options){options}), details)
	if err != nil {
		l.library(err)
	}
}

// projectName is compose's name of the stack. It has no capitals, a stack's may: the names of what is made are put together
// here, not by compose-go.
func (l *loading) projectName() string {
	return cmp.Or(loader.NormalizeProjectName(l.o.Stack), "stack")
}

// decoded is the path in a decoder's sentence.
var decoded = regexp.MustCompile(`^\s*\*?\s*'([^']+)' (.*)$`)

// library says what the library refuses, each part of it at its place.
func (l *loading) library(err error) {
	found := false
	for _, line := range strings.Split(err.Error(), "\n") {
		if m := decoded.FindStringSubmatch(line); m != nil {
			found = true
			l.wrongAt(strings.FieldsFunc(m[1], func(r rune) bool { return strings.ContainsRune(".[]", r) }), "it cannot be read: %s", m[2])
		}
	}
	if !found {
		l.wrong(l.guess(err.Error()), "", "%s", l.tidy(err.Error()))
	}
}

var logging sync.Mutex

// quiet keeps the library from logging, which it does with the process's logger, until what it returns is called. What it
// has to say is noted here, with places.
func quiet() func() {
	logging.Lock()
	level := logrus.GetLevel()
	logrus.SetLevel(logrus.PanicLevel)
	return func() {
		logrus.SetLevel(level)
		logging.Unlock()
	}
}

// plain is a file as compose-go should read it: without version, which it would log about, and with dates and the values
// of driver options as text.
func plain(root *yaml.Node) *yaml.Node {
	out := *root
	out.Content = nil
	for i := 0; i < len(root.Content); i += 2 {
		if root.Content[i].Value != "version" {
			out.Content = append(out.Content, root.Content[i], root.Content[i+1])
		}
	}
	seen := map[*yaml.Node]bool{}
	var walk func(n *yaml.Node)
	walk = func(n *yaml.Node) {
		if seen[n] {
			return
		}
		seen[n] = true
		if n.Kind == yaml.ScalarNode {
			switch {
			case n.ShortTag() == "!!null":
				n.Value = "null" // an empty one would be written as ""
			case n.ShortTag() == "!!timestamp":
				n.Tag, n.Style = "!!str", yaml.DoubleQuotedStyle
			case n.Style&(yaml.FoldedStyle|yaml.LiteralStyle) != 0:
				n.Style = yaml.DoubleQuotedStyle
			}
		}
		for _, c := range n.Content {
			walk(c)
		}
	}
	walk(&out)
	return &out
}

// repair puts into the model what compose-go would lose in the next step.
func (l *loading) repair() {
	services, _ := l.dict["services"].(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(services)) {
		s, ok := services[name].(map[string]any)
		if !ok {
			continue
		}
		for _, key := range []string{"command", "entrypoint"} {
			text, ok := s[key].(string)
			if !ok {
				continue
			}
			words, err := shlex.Split(text)
			if err != nil {
				l.wrongAt([]string{"services", name, key}, "a quote is not closed: close it, or write a list")
				continue
			}
			list := make([]any, 0, len(words))
			for _, w := range words {
				list = append(list, w)
			}
			s[key] = list
		}
	}
	l.dates(l.dict, nil)
	for _, name := range sortedKeys(services) {
		s, _ := services[name].(map[string]any)
		for _, path := range [][]string{{"cpus"}, {"deploy", "resources", "limits", "cpus"}, {"deploy", "resources", "reservations", "cpus"}} {
			l.cpus(append([]string{"services", name}, path...), rawAt(s, path...))
		}
	}
}

// dates refuses what an included file has as a date, whose text is lost.
func (l *loading) dates(v any, path []string) {
	switch v := v.(type) {
	case time.Time:
		l.wrongAt(path, "it is read as a date: put it in quotes")
	case map[string]any:
		for k, e := range v {
			l.dates(e, with(path, k))
		}
	case []any:
		for i, e := range v {
			l.dates(e, with(path, itoa(i)))
		}
	}
}

func clone(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[k] = clone(e)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = clone(e)
		}
		return out
	}
	return v
}

var extending = regexp.MustCompile(`cannot extend service "([^"]+)"`)

// guess finds the place that a library's sentence speaks of: the longest path in it.
func (l *loading) guess(text string) Where {
	best, at := 0, Where{File: l.mains[0].name}
	if m := extending.FindStringSubmatch(text); m != nil {
		return find(l.docs, []string{"services", m[1], "extends"})
	}
	for _, word := range strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(" \"'`:,\n", r) }) {
		parts := strings.FieldsFunc(word, func(r rune) bool { return strings.ContainsRune(".[]", r) })
		for _, d := range l.docs {
			if n, node, _ := d.locate(parts); n > best {
				best, at = n, d.at(node)
			}
		}
		for _, d := range l.docs {
			if n, node, _ := d.locate([]string{"services", word}); n == 2 && best < 2 {
				best, at = n, d.at(node)
			}
		}
	}
	return at
}

// tidy takes the machine's paths out of a library's sentence, and makes it one line.
func (l *loading) tidy(text string) string {
	for _, d := range l.docs {
		if d.path != "" {
			text = strings.ReplaceAll(text, d.path, d.name)
		}
	}
	return strings.Join(strings.Fields(strings.TrimPrefix(text, fmt.Sprintf("failed to parse %s: ", l.mains[0].name))), " ")
}
