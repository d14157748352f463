package render

import (
	"encoding/json"
	"fmt"
	"io"
	"sort"
	"strings"

	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"
)

// NodeMesh is what one node's kernel has, or why that is not known.
type NodeMesh struct {
	Node  *skepv1.Node
	State *skepv1.MeshStateReply
	Err   error
}

// NodeTrace is the way of a packet on one node.
type NodeTrace struct {
	Node *skepv1.Node
	Hops *skepv1.MeshTraceReply
}

// Protocol is a port's protocol, tcp when it names none.
func Protocol(p *skepv1.PortConfig) string { return protocol(p) }

func byHostname(list []NodeMesh) {
	sort.SliceStable(list, func(i, j int) bool { return NaturalLess(Hostname(list[i].Node), Hostname(list[j].Node)) })
}

// MeshPorts is the ports of `mesh ls`. Filters: port (8080, 8080/tcp), service (a name's or an id's beginning).
func MeshPorts(list []NodeMesh, filters []*skepv1.Filter, noTrunc bool) *Table {
	byHostname(list)
	t := &Table{Key: "Port", Columns: []Column{{"Node", "NODE"}, {"Port", "PORT"}, {"Service", "SERVICE"}, {"Backends", "BACKENDS"}, {"Connections", "CONNECTIONS"},
		{"ServiceID", "SERVICE ID"}, {"Mode", "MODE"}, {"Addresses", "ADDRESSES"}},
		Default: `{{.Node}}	{{.Port}}{{if eq .Mode "host"}} (host){{end}}	{{.Service}}	{{.Backends}}	{{.Connections}}`}
	if noTrunc {
		t.Default += "\t{{.Addresses}}"
	}
	for _, n := range list {
		ports := n.State.GetPorts()
		sort.SliceStable(ports, func(i, j int) bool {
			if ports[i].Port != ports[j].Port {
				return ports[i].Port < ports[j].Port
			}
			return ports[i].Protocol < ports[j].Protocol
		})
		for _, p := range ports {
			if !portMatches(p, filters) {
				continue
			}
			var addrs []string
			for _, b := range p.Backends {
				addrs = append(addrs, fmt.Sprintf("%s:%d", b.Addr, b.Port))
			}
			mode := "ingress"
			if p.HostMode {
				mode = "host"
			}
			service := p.ServiceName
			if service == "" {
				service = dash(ShortID(p.ServiceId))
			}
			t.Rows = append(t.Rows, Row{"Node": Hostname(n.Node), "Port": fmt.Sprintf("%d/%s", p.Port, p.Protocol), "Service": service, "ServiceID": p.ServiceId, "Mode": mode,
				"Backends": fmt.Sprint(len(p.Backends)), "Connections": fmt.Sprint(p.Connections), "Addresses": dash(strings.Join(addrs, " "))})
		}
	}
	return t
}

func portMatches(p *skepv1.MeshPortState, filters []*skepv1.Filter) bool {
	for _, f := range filters {
		ok := false
		for _, v := range f.Values {
			switch f.Key {
			case "port":
				ok = ok || v == fmt.Sprint(p.Port) || v == fmt.Sprintf("%d/%s", p.Port, p.Protocol)
			case "service":
				ok = ok || strings.HasPrefix(p.ServiceName, v) || strings.HasPrefix(p.ServiceId, v)
			}
		}
		if !ok {
			return false
		}
	}
	return true
}

// MeshNetworks is the networks of `mesh ls`.
func MeshNetworks(list []NodeMesh, noTrunc bool) *Table {
	byHostname(list)
	t := &Table{Key: "ID", Columns: []Column{{"Node", "NODE"}, {"ID", "NETWORK ID"}, {"Name", "NAME"}, {"VNI", "VNI"}, {"MTU", "MTU"}, {"Local", "TASKS HERE"},
		{"Remote", "ELSEWHERE"}, {"Encrypted", "ENCRYPTED"}}}
	for _, n := range list {
		nets := n.State.GetNetworks()
		sort.SliceStable(nets, func(i, j int) bool { return NaturalLess(nets[i].Name, nets[j].Name) })
		for _, x := range nets {
			id, encrypted := x.Id, "no"
			if !noTrunc {
				id = ShortID(id)
			}
			if x.Encrypted {
				encrypted = "yes"
			}
			t.Rows = append(t.Rows, Row{"Node": Hostname(n.Node), "ID": id, "Name": dash(x.Name), "VNI": fmt.Sprint(x.Vni), "MTU": fmt.Sprint(x.Mtu),
				"Local": fmt.Sprint(x.Local), "Remote": fmt.Sprint(x.Remote), "Encrypted": encrypted})
		}
	}
	return t
}

// Trace is `mesh trace`, with names beside ids and addresses.
func Trace(r *skepv1.MeshTraceReply, names Names) *Table {
	t := &Table{Key: "Where", Columns: []Column{{"Where", "WHERE"}, {"Text", "TEXT"}}}
	for _, h := range r.GetHops() {
		t.Rows = append(t.Rows, Row{"Where": h.Where, "Text": names.In(h.Text)})
	}
	return t
}

// ofNode is an answer with the node it came from; the field names are part of the stable form.
type ofNode struct {
	NodeID   string          `json:"node_id"`
	Hostname string          `json:"hostname"`
	State    json.RawMessage `json:"state,omitempty"`
	Trace    json.RawMessage `json:"trace,omitempty"`
}

func nodeAnswer(n *skepv1.Node, m proto.Message, to func(*ofNode, json.RawMessage)) (ofNode, error) {
	out := ofNode{NodeID: n.GetMeta().GetId(), Hostname: Hostname(n)}
	b, err := protoJSON(m)
	to(&out, b)
	return out, err
}

// JSONMeshStates is `mesh ls --json`: an array with one object for each node.
func JSONMeshStates(w io.Writer, list []NodeMesh) error {
	byHostname(list)
	out := []ofNode{}
	for _, n := range list {
		o, err := nodeAnswer(n.Node, n.State, func(o *ofNode, b json.RawMessage) { o.State = b })
		if err != nil {
			return err
		}
		out = append(out, o)
	}
	return indented(w, out)
}

// JSONTraces is `mesh trace --json`: an array with one object for each node.
func JSONTraces(w io.Writer, list []NodeTrace) error {
	out := []ofNode{}
	for _, n := range list {
		o, err := nodeAnswer(n.Node, n.Hops, func(o *ofNode, b json.RawMessage) { o.Trace = b })
		if err != nil {
			return err
		}
		out = append(out, o)
	}
	return indented(w, out)
}
