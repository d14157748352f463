package state

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/kvtest"
	skepv1 "skep.dev/proto/skep/v1"
)

func after(name string, on ...string) *skepv1.ServiceSpec {
	s := webSpec(name, 1)
	for _, o := range on {
		d := &skepv1.Dependency{}
		d.Service, _, _ = strings.Cut(o, ":")
		switch {
		case strings.HasSuffix(o, ":healthy"):
			d.Condition = skepv1.Dependency_CONDITION_HEALTHY
		case strings.HasSuffix(o, ":completed"):
			d.Condition = skepv1.Dependency_CONDITION_COMPLETED
		}
		s.DependsOn = append(s.DependsOn, d)
	}
	return s
}

func TestDependencies(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	for _, c := range []struct {
		spec *skepv1.ServiceSpec
		want string
	}{
		{after("web", "db"), "service web depends on db, which does not exist: create that one first"},
		{after("web", "web"), "service web cannot depend on itself"},
		{after("web", ""), "depends-on needs the name of a service"},
		{after("web", "db", "db:healthy"), "the service depends on db twice"},
	} {
		_, err := r.create(c.spec)
		wantErr(t, err, c.want)
	}
	db := r.mustCreate("db", 1)
	_, err := r.create(after("web", "db:completed"))
	wantErr(t, err, "service web cannot wait for db to complete: it is not a job; use db:started or db:healthy")
	_, err = r.create(after("web", "db", db.Meta.Id))
	wantErr(t, err, "service web depends on "+db.Meta.Id+" twice")

	cache := must[*skepv1.ServiceReply](t)(r.create(after("cache", "db"))).Service
	if d := cache.Spec.DependsOn[0]; d.Service != db.Meta.Id || d.Condition != skepv1.Dependency_CONDITION_STARTED {
		t.Fatalf("stored %v", d)
	}
	web := must[*skepv1.ServiceReply](t)(r.create(after("web", "cache:healthy", db.Meta.Id[:8]))).Service
	// Every way round is refused, naming the way.
	_, err = r.update("db", after("db", "web"))
	wantErr(t, err, "service db cannot depend on web: each would wait for the other (db -> web -> cache -> db)")
	_, err = r.update("db", after("db", db.Meta.Id))
	wantErr(t, err, "service db cannot depend on itself")
	// An update that names ids, as one made from what was read does, is as good.
	sp := proto.CloneOf(web.Spec)
	sp.DependsOn = sp.DependsOn[:1]
	if v := r.mustUpdate("web", sp); len(v.Spec.DependsOn) != 1 || v.Spec.DependsOn[0].Service != cache.Meta.Id {
		t.Fatalf("updated %v", v.Spec.DependsOn)
	}
	reply := must[*skepv1.ServiceReply](t)(call(r, api.ServiceRemove, &skepv1.RemoveServiceRequest{Ref: "cache"}))
	if len(reply.Warnings) != 1 || !strings.Contains(reply.Warnings[0], "service web depends on it") {
		t.Fatalf("warnings %v", reply.Warnings)
	}
	// What depends on a service that is gone can still be changed otherwise.
	sp.Task.ForceUpdate++
	r.mustUpdate("web", sp)
}

// Updates that each may be made, and would close a circle together, come at once to three instances: never are all of them
// made, and who is refused is told the way round.
func TestDependencyCircleByTwoUpdates(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.start()
	r.start()
	for round := range 50 {
		ring := 2 + round%2
		names := make([]string, ring)
		for i := range names {
			names[i] = fmt.Sprintf("s%d-%d", round, i)
			r.mustCreate(names[i], 1)
		}
		var wg sync.WaitGroup
		errs := make([]error, ring)
		for i, name := range names {
			wg.Go(func() { _, errs[i] = r.update(name, after(name, names[(i+1)%ring])) })
		}
		wg.Wait()
		refused := 0
		for i, err := range errs {
			if err == nil {
				continue
			}
			refused++
			if !strings.HasPrefix(err.Error(), fmt.Sprintf("service %s cannot depend on %s: each would wait for the other (", names[i], names[(i+1)%ring])) {
				t.Errorf("round %d: %v", round, err)
			}
		}
		if refused != 1 {
			t.Fatalf("round %d: %d of %d updates refused, want the last alone: %v", round, refused, ring, errs)
		}
	}
	// A dependency taken away and put back is one more, and other updates do not care.
	v := must[*skepv1.Service](t)(r.inspect("s0-0"))
	sp := proto.CloneOf(v.Spec)
	sp.DependsOn = nil
	r.mustUpdate("s0-0", sp)
	r.caughtUp()
	key, _ := r.s.ix.Key(dependsKey)
	sp = proto.CloneOf(sp)
	sp.Task.ForceUpdate++
	r.mustUpdate("s0-0", sp)
	r.caughtUp()
	if now, _ := r.s.ix.Key(dependsKey); now.Revision != key.Revision {
		t.Error("an update that adds no dependency was made to wait for those that do")
	}
	if found := audit(r.s.ix); len(found) > 0 {
		t.Errorf("audit: %v", found)
	}
}
