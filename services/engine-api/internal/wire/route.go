package wire

import (
	"net/http"
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Handler answers one request. An error is answered in Docker's form; it must come before anything was written.
type Handler func(w http.ResponseWriter, r *Request) error

// Route is one endpoint.
type Route struct {
	Method string
	// Path has {name} for one segment; {name...} takes one or more, for names of images, which have slashes.
	Path string
	Do   Handler
	// Stream: it stays open for as long as the client wants, and has places of its own.
	Stream bool
	// Body is how many bytes of a body are taken; 0 = the usual limit.
	Body int64

	segments []string
}

// GET is a route that reads.
func GET(path string, h Handler) Route { return Route{Method: http.MethodGet, Path: path, Do: h} }

// POST is a route that changes something.
func POST(path string, h Handler) Route { return Route{Method: http.MethodPost, Path: path, Do: h} }

// DELETE is a route that removes.
func DELETE(path string, h Handler) Route {
	return Route{Method: http.MethodDelete, Path: path, Do: h}
}

// Routes finds endpoints. The first that matches is it.
type Routes []Route

// NewRoutes prepares routes.
func NewRoutes(routes ...Route) Routes {
	for i := range routes {
		routes[i].segments = strings.Split(strings.TrimPrefix(routes[i].Path, "/"), "/")
	}
	return routes
}

// mostName is how long a segment of a path may be: no name or id of Docker's is longer, but references of images.
const mostName = 1024

// find matches an escaped path without its version. Docker's answer to what is no endpoint is "page not found", to a wrong method as well.
func (rs Routes) find(method, path string) (*Route, map[string]string, error) {
	segments, err := split(path)
	if err != nil {
		return nil, nil, err
	}
	for i := range rs {
		r := &rs[i]
		if r.Method != method && (r.Method != http.MethodGet || method != http.MethodHead) {
			continue
		}
		if vars, ok := match(r.segments, segments); ok {
			return r, vars, nil
		}
	}
	return nil, nil, errNoPage
}

// split decodes a path segment by segment, so that an escaped slash is part of a name and never a separator. Names that climb,
// are empty or hold what no name has are refused here, once for all endpoints.
func split(path string) ([]string, error) {
	raw := strings.Split(strings.TrimPrefix(path, "/"), "/")
	if len(raw) > 16 {
		return nil, errNoPage
	}
	// Names of containers are also written with a slash in front, as Docker tells them.
	named := raw[0] == "containers" && len(raw) > 2
	if named && raw[1] == "" {
		raw = append(raw[:1:1], raw[2:]...)
	}
	for i, s := range raw {
		name, err := url.PathUnescape(s)
		if named && i == 1 {
			name = strings.TrimPrefix(name, "/")
		}
		switch {
		case err != nil:
			return nil, Invalid("invalid path: %v", err)
		case name == "" || name == "." || name == ".." || strings.Contains(name, "/"):
			return nil, errNoPage
		case len(name) > mostName:
			return nil, Invalid("invalid name: it is longer than %d bytes", mostName)
		case !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl):
			return nil, Invalid("invalid name: %q", name)
		}
		raw[i] = name
	}
	return raw, nil
}

func match(pattern, path []string) (map[string]string, bool) {
	var vars map[string]string
	keep := func(name, value string) {
		if vars == nil {
			vars = map[string]string{}
		}
		vars[name] = value
	}
	for i, p := range pattern {
		name, is := strings.CutPrefix(p, "{")
		if !is {
			if i >= len(path) || path[i] != p {
				return nil, false
			}
			continue
		}
		name = strings.TrimSuffix(name, "}")
		if name, many := strings.CutSuffix(name, "..."); many {
			after := len(pattern) - i - 1
			end := len(path) - after
			if end <= i {
				return nil, false
			}
			keep(name, strings.Join(path[i:end], "/"))
			rest, ok := match(pattern[i+1:], path[end:])
			for k, v := range rest {
				keep(k, v)
			}
			return vars, ok
		}
		if i >= len(path) {
			return nil, false
		}
		keep(name, path[i])
	}
	return vars, len(pattern) == len(path)
}
