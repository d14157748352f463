package compose

import (
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/format"
	"github.com/compose-spec/compose-go/v2/types"
)

// checkLists looks at a file's own lists, before merging makes one item of two.
func (l *loading) checkLists(d *document) {
	services, _ := d.values["services"].(map[string]any)
	for _, name := range sortedKeys(services) {
		s, _ := services[name].(map[string]any)
		volumes, _ := s["volumes"].([]any)
		taken := map[string]int{}
		for i, v := range volumes {
			at := []string{"services", name, "volumes", itoa(i)}
			where := ""
			switch v := v.(type) {
			case string:
				where = l.shortVolume(d, at, v)
			case map[string]any:
				if where, _ = v["target"].(string); where == "" {
					l.wrongIn(d, at, "it has no target: say where in the container it is mounted")
				}
			}
			if where == "" {
				continue
			}
			where = path.Clean(where)
			if j, ok := taken[where]; ok {
				l.wrongIn(d, at, "volume %d is mounted at %s too: remove one of them", j+1, where)
			}
			taken[where] = i
		}
		ports, _ := s["ports"].([]any)
		l.checkPorts(d, name, ports)
	}
}

func (l *loading) wrongIn(d *document, path []string, text string, a ...any) {
	_, at, _ := d.locate(path)
	l.wrong(d.at(at), joinPath(path), text, a...)
}

// shortVolume looks at source:target:options, and returns the target.
func (l *loading) shortVolume(d *document, at []string, text string) string {
	parts := strings.Split(text, ":")
	if len(parts) > 1 && len(parts[0]) == 1 && parts[0] != "." && parts[0] != "~" && parts[0] != "/" {
		l.wrongIn(d, at, "%s: would be a drive of Windows: give the volume a name of two letters or more", parts[0])
		return ""
	}
	v, err := format.ParseVolume(text)
	if err != nil {
		l.wrongIn(d, at, "it is no source:target:options")
		return ""
	}
	if len(parts) == 3 {
		for _, o := range strings.Split(parts[2], ",") {
			if o == "ro" || o == "rw" || o == "nocopy" || o == "z" || o == "Z" || slices.Contains(format.Propagations, o) {
				continue
			}
			_, node, _ := d.locate(at)
			l.note(d.at(node), joinPath(at), "the option %.20q has no effect", o)
		}
	}
	return v.Target
}

// checkPorts refuses a port that one file publishes twice: of two files, the later one wins.
func (l *loading) checkPorts(d *document, name string, ports []any) {
	type key struct {
		published    uint32
		protocol, ip string
	}
	taken := map[key]bool{}
	for i, p := range ports {
		at := []string{"services", name, "ports", itoa(i)}
		var list []types.ServicePortConfig
		switch p := p.(type) {
		case string:
			if wide(p) {
				l.wrongIn(d, at, "it publishes more than %d ports", maxPorts)
				continue
			}
			var err error
			if list, err = types.ParsePortConfig(p); err != nil {
				l.wrongIn(d, at, "it is no port: write published:target, or the long form")
				continue
			}
		case map[string]any:
			one := types.ServicePortConfig{Protocol: "tcp", Published: textOf(p["published"])}
			if v := textOf(p["protocol"]); v != "" {
				one.Protocol = strings.ToLower(v)
			}
			one.HostIP = textOf(p["host_ip"])
			list = append(list, one)
		}
		for _, one := range list {
			first, last, err := portRange(one.Published)
			if err != nil || last-first >= maxPorts {
				continue // said elsewhere
			}
			for n := first; n <= last && n > 0; n++ {
				k := key{n, one.Protocol, one.HostIP}
				if taken[k] {
					l.wrongIn(d, at, "the port %d/%s is published twice: remove one of them", n, one.Protocol)
					break
				}
				taken[k] = true
			}
		}
	}
}

var portNumbers = regexp.MustCompile(`(\d{1,9})-(\d{1,9})`)

// wide: a range has too many ports to write them out.
func wide(text string) bool {
	for _, m := range portNumbers.FindAllStringSubmatch(text, -1) {
		from, _ := strconv.Atoi(m[1])
		to, _ := strconv.Atoi(m[2])
		if to-from >= maxPorts {
			return true
		}
	}
	return false
}
