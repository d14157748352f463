package compose

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/compose-spec/compose-go/v2/template"
	"go.yaml.in/yaml/v4"
)

// references looks at every file that the files include or extend before compose-go opens it: it would wait for a pipe,
// and take a file of any size.
func (l *loading) references() {
	seen := map[string]bool{}
	for _, d := range l.mains {
		l.follow(d, []string{d.path}, seen)
	}
}

// follow reads what d refers to; chain are the files that led to it by include.
func (l *loading) follow(d *document, chain []string, seen map[string]bool) {
	if _, services := child(d.root, "services"); services != nil {
		for _, service := range entries(services) {
			_, extends := child(service.value, "extends")
			if extends == nil {
				continue
			}
			at, file := child(extends, "file")
			if file == nil {
				continue
			}
			path, ok := d.pathOf(file)
			if ok && !seen["extends "+path] {
				seen["extends "+path] = true
				if e := l.reference(d, at, []string{"services", service.name, "extends", "file"}, path, filepath.Dir(path), d.env); e != nil {
					l.follow(e, chain, seen)
				}
			}
		}
	}
	_, list := child(d.root, "include")
	if list == nil || target(list).Kind != yaml.SequenceNode {
		return // the schema says what it should be
	}
	for i := range target(list).Content {
		l.include(d, i, chain, seen)
	}
}

func (l *loading) include(d *document, i int, chain []string, seen map[string]bool) {
	at := []string{"include", strconv.Itoa(i)}
	_, _, item := d.locate(at)
	paths, envFiles, project := item, (*yaml.Node)(nil), ""
	if target(item).Kind == yaml.MappingNode {
		_, paths = child(item, "path")
		_, envFiles = child(item, "env_file")
		if _, p := child(item, "project_directory"); p != nil {
			project, _ = d.pathOf(p)
		}
	}
	files := d.pathsOf(paths)
	if len(files) == 0 {
		return
	}
	if project == "" {
		project = filepath.Dir(files[0])
	}
	env := d.env
	switch beside := filepath.Join(project, ".env"); {
	case envFiles != nil:
		env = l.withFiles(env, d.pathsOf(envFiles))
	default:
		if st, err := os.Stat(beside); !errors.Is(err, fs.ErrNotExist) && (err != nil || !st.IsDir()) {
			env = l.withFiles(env, []string{beside})
		}
	}
	for _, path := range files {
		if slices.Contains(chain, path) {
			l.wrong(d.at(item), "include", "%s includes itself: remove this line", l.short(path))
			continue
		}
		key := "include " + project + " " + path
		if seen[key] {
			continue
		}
		seen[key] = true
		if e := l.reference(d, item, at, path, project, env); e != nil {
			l.follow(e, append(slices.Clone(chain), path), seen)
		}
	}
}

// reference reads one file that d names at a node.
func (l *loading) reference(d *document, at *yaml.Node, path []string, file, dir string, env map[string]string) *document {
	if len(l.docs)+len(l.mains) >= maxFiles {
		if len(l.docs)+len(l.mains) == maxFiles {
			l.wrong(d.at(at), joinPath(path), "more than %d files are included and extended", maxFiles)
		}
		return nil
	}
	data, err := readFile(file, maxFile)
	if err != nil {
		l.wrong(d.at(at), joinPath(path), "cannot read the file %s: %v", l.short(file), err)
		return nil
	}
	e := l.parse(l.short(file), file, dir, data)
	if e == nil {
		return nil
	}
	e.env = maps.Clone(env)
	l.docs = append(l.docs, e)
	return e
}

// pathOf is a path that the document names, absolute. What cannot be filled in is refused elsewhere.
func (d *document) pathOf(n *yaml.Node) (string, bool) {
	n = target(n)
	if n.Kind != yaml.ScalarNode || n.Value == "" {
		return "", false
	}
	text, err := template.SubstituteWithOptions(n.Value, d.lookup, template.WithoutLogging)
	if err != nil || text == "" {
		return "", false
	}
	path, err := abs(d.dir, text)
	return path, err == nil
}

func (d *document) pathsOf(n *yaml.Node) (paths []string) {
	if n == nil {
		return nil
	}
	items := []*yaml.Node{n}
	if t := target(n); t.Kind == yaml.SequenceNode {
		items = t.Content
	}
	for _, item := range items {
		if p, ok := d.pathOf(item); ok {
			paths = append(paths, p)
		}
	}
	return paths
}

func (d *document) lookup(name string) (string, bool) {
	v, ok := d.env[name]
	return v, ok
}

// entry is one key of a mapping.
type entry struct {
	name       string
	key, value *yaml.Node
}

// entries are the keys of a mapping and of what is merged into it, each once, in their order.
func entries(n *yaml.Node) (out []entry) {
	n = target(n)
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	seen := map[string]bool{}
	add := func(e entry) {
		if !seen[e.name] {
			seen[e.name] = true
			out = append(out, e)
		}
	}
	for i := 0; i < len(n.Content); i += 2 {
		if k := n.Content[i]; !isMerge(k) {
			add(entry{target(k).Value, k, n.Content[i+1]})
		}
	}
	for i := 0; i < len(n.Content); i += 2 {
		if !isMerge(n.Content[i]) {
			continue
		}
		for _, m := range merged(n.Content[i+1]) {
			for _, e := range entries(m) {
				add(e)
			}
		}
	}
	return out
}

// merged are the mappings that stand after <<.
func merged(n *yaml.Node) []*yaml.Node {
	if t := target(n); t.Kind == yaml.SequenceNode {
		return t.Content
	}
	return []*yaml.Node{n}
}
