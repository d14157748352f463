package state

import (
	"fmt"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/kvtest"
	skepv1 "skep.dev/proto/skep/v1"
)

func published(name string, ports ...*skepv1.PortConfig) *skepv1.ServiceSpec {
	s := webSpec(name, 1)
	s.Endpoint = &skepv1.EndpointSpec{Ports: ports}
	return s
}

const host = skepv1.PublishMode_PUBLISH_MODE_HOST

func TestPublishedPorts(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	a := must[*skepv1.ServiceReply](t)(r.create(published("a", &skepv1.PortConfig{TargetPort: 80, PublishedPort: 8080}))).Service
	_, err := r.create(published("b", &skepv1.PortConfig{TargetPort: 80, PublishedPort: 8080}))
	wantErr(t, err, fmt.Sprintf("port '8080' is already in use by service 'a' (%s) as an ingress port", a.Meta.Id))
	if fault.Of(err) != fault.CodeConflict {
		t.Fatalf("code %s", fault.Of(err))
	}
	_, err = r.create(published("b", &skepv1.PortConfig{TargetPort: 80, PublishedPort: 8080, PublishMode: host}))
	wantErr(t, err, fmt.Sprintf("port '8080' is already in use by service 'a' (%s) as an ingress port", a.Meta.Id))
	// Another protocol is another port.
	must[*skepv1.ServiceReply](t)(r.create(published("udp", &skepv1.PortConfig{TargetPort: 80, PublishedPort: 8080, Protocol: "udp"})))

	// Any number of services may publish a port on their hosts, but not beside the mesh.
	h1 := must[*skepv1.ServiceReply](t)(r.create(published("h1", &skepv1.PortConfig{TargetPort: 80, PublishedPort: 9000, PublishMode: host}))).Service
	must[*skepv1.ServiceReply](t)(r.create(published("h2", &skepv1.PortConfig{TargetPort: 80, PublishedPort: 9000, PublishMode: host})))
	rm := func(ref string) {
		t.Helper()
		must[*skepv1.ServiceReply](t)(call(r, api.ServiceRemove, &skepv1.RemoveServiceRequest{Ref: ref}))
	}
	rm("h2")
	_, err = r.create(published("c", &skepv1.PortConfig{TargetPort: 80, PublishedPort: 9000}))
	wantErr(t, err, fmt.Sprintf("port '9000' is already in use by service 'h1' (%s) as a host-published port", h1.Meta.Id))
	rm("h1")
	must[*skepv1.ServiceReply](t)(r.create(published("c", &skepv1.PortConfig{TargetPort: 80, PublishedPort: 9000})))

	// An update moves ports, the old one is free for others, and a dynamic one stays what it was.
	sp := proto.CloneOf(a.Spec)
	sp.Endpoint.Ports = []*skepv1.PortConfig{{TargetPort: 80, PublishedPort: 8081}, {TargetPort: 81}}
	update := func(sp *skepv1.ServiceSpec) *skepv1.Service {
		t.Helper()
		return must[*skepv1.ServiceReply](t)(call(r, api.ServiceUpdate, &skepv1.UpdateServiceRequest{Ref: "a", Spec: sp, NoResolveImage: true})).Service
	}
	dynamic := update(sp).Endpoint.Ports[1].PublishedPort
	if dynamic < firstDynamic || dynamic > lastDynamic {
		t.Fatalf("dynamic port %d", dynamic)
	}
	must[*skepv1.ServiceReply](t)(r.create(published("b", &skepv1.PortConfig{TargetPort: 80, PublishedPort: 8080})))
	sp.Labels = map[string]string{"x": "y"}
	if got := update(sp).Endpoint.Ports[1].PublishedPort; got != dynamic {
		t.Fatalf("dynamic port moved from %d to %d", dynamic, got)
	}
	rm("a")
	if _, ok := r.s.ix.Key(keys.PortKey("tcp", dynamic)); ok {
		t.Fatal("a removed service keeps its port")
	}
}

func TestRaceForOnePort(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.start()
	const clients = 12
	var wg sync.WaitGroup
	errs := make([]error, clients)
	for i := range clients {
		wg.Go(func() {
			_, errs[i] = r.create(published(fmt.Sprintf("s%d", i), &skepv1.PortConfig{TargetPort: 80, PublishedPort: 80}, &skepv1.PortConfig{TargetPort: 81}))
		})
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else if !fault.Is(err, fault.CodeConflict) {
			t.Fatal(err)
		}
	}
	if won != 1 {
		t.Fatalf("%d won", won)
	}
	r.caughtUp()
	if k := r.s.ix.Keys(keys.Port.Prefix()); len(k) != 2 {
		t.Fatalf("ports left behind: %v", k)
	}
}
