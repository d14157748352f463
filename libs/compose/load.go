package compose

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"

	"skep.dev/libs/fault"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// Options say what to read.
type Options struct {
	Files []string  // in the order of -c, "-" = Stdin; what a later one says is merged over the ones before
	Stdin io.Reader // read when Files has "-"
	// The folder that relative names of Files and EnvFiles start from, "" = the process's. Relative paths inside the files
	// start from the folder of the first file, with standard input from Dir.
	Dir      string
	Stack    string   // its name, see ValidateName
	Env      []string // NAME=value of the shell; it wins over env files
	EnvFiles []string // instead of .env beside the first file, which is read when it is there
	// Services of these profiles are a part of the stack too, "*" = of all; none = those of the variable COMPOSE_PROFILES.
	Profiles []string
	// What skep does not do becomes a note, instead of a refusal.
	IgnoreUnsupported bool
}

// Stack is what files ask for.
type Stack struct {
	Spec             *skepv1.StackSpec // names are the cluster's; every list is sorted
	Secrets, Configs []Value           // of the stack's own, in the order of names
	External         []External        // what must exist already and is used, in the order of kinds and names
	Notes            []Note            // in the order of places

	model map[string]any // for Marshal
}

// Value is the content of a secret or config. It prints as its name.
type Value struct {
	Name string // as in the StackSpec
	Data []byte
}

func (v Value) String() string { return fmt.Sprintf("%s (%d bytes)", v.Name, len(v.Data)) }

// GoString keeps the value out of %#v too.
func (v Value) GoString() string { return v.String() }

// External is an object that the stack uses and that somebody else makes.
type External struct {
	Kind  string // network, secret, config
	Name  string
	Where Where // where it is declared
}

// Labels that Docker's tools know a stack's objects by.
const (
	LabelNamespace = "com.docker.stack.namespace"
	LabelImage     = "com.docker.stack.image" // of a service: as the file names it
)

// ValidateName checks the name of a stack. It begins the names of the stack's services, which are a part of DNS names, so
// that what no service can be named is refused here.
func ValidateName(name string) error {
	switch {
	case strings.Trim(name, " \t\r\n\"'") == "":
		return fault.Invalid("the name of the stack is empty: give it one")
	case strings.Contains(name, "."):
		return fault.Invalid("invalid stack name %q: its services could not be reached by name with a dot in it, use letters, digits, - and _", name)
	case spec.ValidateName(name) != nil:
		return fault.Invalid("invalid stack name %.80q: use letters, digits, - and _, at most 63, with a letter or digit at both ends", name)
	}
	return nil
}

// loading is one Load.
type loading struct {
	o       Options
	dir     string            // that relative paths start from
	env     map[string]string // of ${NAME}
	mains   []*document       // of Options.Files
	docs    []*document       // mains behind everything they include and extend
	dict    map[string]any    // the merged model
	project *types.Project
	out     *Stack
	unset   map[string]string // variables without a value, by the path that asks for them
	filled  map[string]string // the variables that the files use, by their values

	problems, notes []Note
}

func (l *loading) wrong(at Where, path, format string, a ...any) {
	l.problems = append(l.problems, Note{at, path, fmt.Sprintf(format, a...)})
}

func (l *loading) note(at Where, path, format string, a ...any) {
	l.notes = append(l.notes, Note{at, path, fmt.Sprintf(format, a...)})
}

// wrongAt and noteAt speak of an attribute of the merged model, by the parts of its path.
func (l *loading) wrongAt(path []string, format string, a ...any) {
	l.wrong(find(l.docs, path), strings.Join(path, "."), format, a...)
}

// later reports whether the last file that has one thing comes after the last that has another.
func (l *loading) later(one, other []string) bool {
	file := func(path []string) int {
		at := find(l.docs, path)
		return slices.IndexFunc(l.docs, func(d *document) bool { return d.name == at.File })
	}
	return file(one) > file(other)
}

func (l *loading) noteAt(path []string, format string, a ...any) {
	l.note(find(l.docs, path), strings.Join(path, "."), format, a...)
}

// unsupported is a refusal, or a note when the user asked for that.
func (l *loading) unsupported(path []string, format string, a ...any) {
	if l.o.IgnoreUnsupported {
		l.noteAt(path, "ignored: "+format, a...)
		return
	}
	l.wrongAt(path, format, a...)
}

func (l *loading) failed() error {
	if len(l.problems) == 0 {
		return nil
	}
	// What a variable without a value has led to is told with it: the warning itself is not shown then.
	for i, p := range l.problems {
		if name, ok := l.unset[p.Path]; ok && p.Path != "" {
			l.problems[i].Text += fmt.Sprintf(" (the variable %s is not set)", name)
		}
	}
	l.mask(l.problems)
	return Problems(sorted(l.problems))
}

// shortest is the least length of a value that mask takes for one: a number or a word of three letters is in many texts.
const shortest = 4

// mask takes the values of variables out of texts: one of them may be a password, and libraries quote what they refuse.
func (l *loading) mask(notes []Note) {
	values := slices.DeleteFunc(slices.Collect(maps.Keys(l.filled)), func(v string) bool { return len(v) < shortest })
	slices.SortFunc(values, func(a, b string) int { return cmp.Or(len(b)-len(a), strings.Compare(a, b)) })
	for i := range notes {
		for _, v := range values {
			notes[i].Text = strings.ReplaceAll(notes[i].Text, v, "${"+l.filled[v]+"}")
		}
	}
}

// Load reads a stack. The error is Problems, with everything that is wrong, and then nothing else is returned.
func Load(ctx context.Context, o Options) (*Stack, error) {
	if err := ValidateName(o.Stack); err != nil {
		return nil, err
	}
	if len(o.Files) == 0 {
		return nil, fault.Invalid("no compose file: name one with -c, or - for standard input")
	}
	if len(o.Files) > maxFiles {
		return nil, fault.Invalid("%d compose files: name %d at most", len(o.Files), maxFiles)
	}
	l := &loading{o: o, unset: map[string]string{}, filled: map[string]string{}, out: &Stack{Spec: &skepv1.StackSpec{Name: o.Stack}}}
	for _, step := range []func(context.Context){l.read, l.check, l.merge, l.convert} {
		step(ctx)
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("loading stack %s: %w", o.Stack, err)
		}
		if err := l.failed(); err != nil {
			return nil, err
		}
	}
	l.out.Notes = sorted(l.notes)
	return l.out, nil
}

// read fetches and parses the files, and what they include and extend.
func (l *loading) read(context.Context) {
	first := l.o.Files[0]
	dir := l.o.Dir
	if first != "-" {
		dir = filepath.Dir(first)
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(l.o.Dir, dir)
		}
	}
	var err error
	if l.dir, err = filepath.Abs(dir); err != nil {
		l.wrong(Where{File: first}, "", "cannot tell its folder: %v", err)
		return
	}
	l.env = l.variables()
	stdin := 0
	for _, name := range l.o.Files {
		path, shown := "", name
		var data []byte
		switch {
		case name == "-" && l.o.Stdin == nil:
			err = fmt.Errorf("there is no standard input")
		case name == "-":
			if stdin++; stdin > 1 {
				l.wrong(Where{File: "stdin"}, "", "- is named twice: standard input can be read once")
				continue
			}
			shown = "stdin"
			data, err = readAll(l.o.Stdin, maxFile)
		default:
			if path, err = abs(l.o.Dir, name); err == nil {
				data, err = readFile(path, maxFile)
			}
		}
		if err != nil {
			l.wrong(Where{File: shown}, "", "cannot read the file: %v", err)
			continue
		}
		if d := l.parse(shown, path, l.dir, data); d != nil {
			l.mains = append(l.mains, d)
		}
	}
	l.references()
	l.docs = append(l.docs, l.mains...)
}

func (l *loading) parse(name, path, dir string, data []byte) *document {
	d, notes := parseDocument(name, data)
	l.problems = append(l.problems, notes...)
	if d != nil {
		d.path, d.dir, d.env = path, dir, l.env
	}
	return d
}

// short is a path for messages: below Options.Dir as people write it.
func (l *loading) short(path string) string {
	base, err := filepath.Abs(l.o.Dir)
	if err != nil {
		return path
	}
	if rel, err := filepath.Rel(base, path); err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
		return rel
	}
	return path
}
