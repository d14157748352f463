package state

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/rpc"
	skepv1 "skep.dev/proto/skep/v1"
)

func TestWarnsOfVolumesThatNothingCovers(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	volumes := []string{"/var/lib/mysql", "/log\x1b[2J/" + strings.Repeat("x", 5000)}
	nc := r.n.Conn(t)
	srv := must[*rpc.Server](t)(rpc.NewServer(nc, rpc.Config{Name: "agent"}))
	t.Cleanup(func() { _ = srv.Close() }) // the connection may be closed already
	if err := api.Handle(srv, api.ImageResolve, func(_ context.Context, q *skepv1.ResolveImageRequest) (*skepv1.ResolveImageReply, error) {
		return &skepv1.ResolveImageReply{Ref: q.Ref + digestA, Volumes: volumes}, nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	create := func(name string, mounts ...*skepv1.Mount) []string {
		t.Helper()
		sp := webSpec(name, 1)
		sp.Task.Container.Image, sp.Task.Container.Mounts = "db:1", mounts
		return must[*skepv1.ServiceReply](t)(call(r, api.ServiceCreate, &skepv1.CreateServiceRequest{Spec: sp})).Warnings
	}
	w := create("bare")
	if len(w) != 1 || !strings.Contains(w[0], "image db:1 keeps data in /log") || !strings.Contains(w[0], "/var/lib/mysql") || len(w[0]) > 600 || strings.ContainsRune(w[0], '\x1b') {
		t.Errorf("no mount: %q", w)
	}
	tmp := func(target string) *skepv1.Mount { return &skepv1.Mount{Type: skepv1.Mount_TYPE_TMPFS, Target: target} }
	volumes = volumes[:1]
	if w := create("covered", tmp("/var/lib/mysql/")); len(w) != 0 {
		t.Errorf("covered: %q", w)
	}
	if w := create("beside", tmp("/var/lib")); len(w) != 1 || !strings.Contains(w[0], "target=/var/lib/mysql") {
		t.Errorf("a folder above it is another mount: %q", w)
	}
	volumes = nil
	for i := range 300 {
		volumes = append(volumes, fmt.Sprintf("/v%03d", i))
	}
	if w := create("many"); len(w) != 1 || !strings.Contains(w[0], "/v000, /v001, /v002 and 297 more") {
		t.Errorf("many: %q", w)
	}
}

func TestWarnsOfVolumesThatStayBehind(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	data := &skepv1.Mount{Type: skepv1.Mount_TYPE_VOLUME, Source: "data", Target: "/data"}
	make := func(name string, change func(*skepv1.ServiceSpec)) []string {
		t.Helper()
		sp := webSpec(name, 1)
		sp.Task.Container.Mounts = []*skepv1.Mount{proto.CloneOf(data)}
		sp.Task.Placement = &skepv1.Placement{}
		change(sp)
		return must[*skepv1.ServiceReply](t)(r.create(sp)).Warnings
	}
	if w := make("alone", func(*skepv1.ServiceSpec) {}); len(w) != 0 {
		t.Errorf("one node: %q", w)
	}
	r.admit("n1", manager)
	r.admit("n2", worker)
	if w := make("moves", func(*skepv1.ServiceSpec) {}); len(w) != 1 || !strings.Contains(w[0], "volume data is local to each node") || !strings.Contains(w[0], "service moves") {
		t.Errorf("two nodes: %q", w)
	}
	for name, change := range map[string]func(*skepv1.ServiceSpec){
		"pinned":  func(s *skepv1.ServiceSpec) { s.Task.Placement.VolumePin = true },
		"led":     func(s *skepv1.ServiceSpec) { s.Task.Placement.Constraints = []string{"node.labels.disk==yes"} },
		"global":  func(s *skepv1.ServiceSpec) { s.Mode = &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_Global{}} },
		"plugin":  func(s *skepv1.ServiceSpec) { s.Task.Container.Mounts[0].VolumeDriver = "rexray" },
		"unnamed": func(s *skepv1.ServiceSpec) { s.Task.Container.Mounts[0].Source = "" },
	} {
		if w := make(name, change); len(w) != 0 {
			t.Errorf("%s: %q", name, w)
		}
	}
	if w := make("kept-off", func(s *skepv1.ServiceSpec) { s.Task.Placement.Constraints = []string{"node.hostname!=n1"} }); len(w) != 1 {
		t.Errorf("a constraint that leads to no node: %q", w)
	}
	// An update says what is new, and nothing again.
	update := func(change func(*skepv1.ServiceSpec)) []string {
		t.Helper()
		id, _ := r.s.ix.ServiceByName("moves")
		sp := proto.CloneOf(r.s.ix.Service(id).Spec)
		change(sp)
		return must[*skepv1.ServiceReply](t)(call(r, api.ServiceUpdate, &skepv1.UpdateServiceRequest{Ref: "moves", Spec: sp, NoResolveImage: true})).Warnings
	}
	if w := update(func(s *skepv1.ServiceSpec) { s.Task.ForceUpdate++ }); len(w) != 0 {
		t.Errorf("nothing new: %q", w)
	}
	w := update(func(s *skepv1.ServiceSpec) {
		s.Task.Container.Mounts = append(s.Task.Container.Mounts,
			&skepv1.Mount{Type: skepv1.Mount_TYPE_VOLUME, Source: "more", Target: "/more"},
			&skepv1.Mount{Type: skepv1.Mount_TYPE_BIND, Source: "/srv", Target: "/srv", Consistency: "cached"})
	})
	if host := update(func(s *skepv1.ServiceSpec) {
		s.Task.Networks = []*skepv1.NetworkAttachment{{Target: "host", Aliases: []string{"db"}, DriverOpts: map[string]string{"com.docker.network.endpoint.x": "1"}}}
	}); len(host) != 2 || !strings.Contains(host[0], "alias db on network host has no effect") || !strings.Contains(host[1], "driver-opt com.docker.network.endpoint.x") {
		t.Errorf("words on network host: %q", host)
	}
	if len(w) != 2 || !slices.ContainsFunc(w, func(s string) bool { return strings.Contains(s, "volume more is local") }) ||
		!slices.ContainsFunc(w, func(s string) bool {
			return strings.Contains(s, "consistency=cached of the mount at /srv has no effect")
		}) {
		t.Errorf("a volume and a word more: %q", w)
	}
}
