package member_test

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"skep.dev/libs/member"
)

func paths(t *testing.T) member.Paths {
	t.Helper()
	dir := t.TempDir()
	return member.Paths{Data: dir + "/lib", Run: dir + "/run"}
}

func TestANodeIsOneFormOrTheOther(t *testing.T) {
	p := paths(t)
	node, err := member.HoldNode(p)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(err error, words ...string) {
		t.Helper()
		for _, w := range append(words, p.Data) {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("want an error with %q, got %v", w, err)
			}
		}
	}
	_, err = member.HoldNode(p)
	refused(err, fmt.Sprint("pid ", os.Getpid()), "already")
	_, _, err = member.HoldPart(p, "skep-bus", true)
	refused(err, "in one process", fmt.Sprint("pid ", os.Getpid()))
	node()

	n, bus, err := member.HoldPart(p, "skep-bus", true)
	if err != nil || n != 1 {
		t.Fatal(n, err)
	}
	_, _, err = member.HoldPart(p, "skep-bus", true)
	refused(err, "skep-bus", "a node has one")
	_, err = member.HoldNode(p)
	refused(err, "processes of their own", fmt.Sprint("skep-bus pid ", os.Getpid()))

	// Instances are numbered, and a number that is free again is taken again.
	var ends []func()
	for want := 1; want <= 3; want++ {
		n, end, err := member.HoldPart(p, "skep-scheduler", false)
		if err != nil || n != want {
			t.Fatal(n, err)
		}
		ends = append(ends, end)
	}
	ends[1]()
	n, end, err := member.HoldPart(p, "skep-scheduler", false)
	if err != nil || n != 2 {
		t.Error(n, err)
	}
	if got := member.Holders(p); len(got) != 4 {
		t.Errorf("who runs here: %q", got)
	}
	end()
	ends[0]()
	ends[2]()
	bus()
	if node, err = member.HoldNode(p); err != nil {
		t.Fatal(err)
	}
	node()
}

func TestWritersOfTheRecordLoseNothing(t *testing.T) {
	p := paths(t)
	if _, err := member.Load(p); err != member.ErrNoNode { //nolint:errorlint // callers compare it
		t.Error(err)
	}
	first := &member.Record{NodeID: "n", Role: member.RoleManager, Advertise: "10.0.0.1:2377", Listen: "0.0.0.0:2377", Init: &member.Initial{Cluster: []byte("{}")}}
	if err := first.Save(p); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			_, err := member.Update(p, func(r *member.Record) {
				if i == 7 {
					r.Init = nil
				}
				r.MaxTasks++
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	r, err := member.Load(p)
	if err != nil || r.MaxTasks != 40 || r.Init != nil {
		t.Errorf("%+v %v", r, err)
	}
	if st, err := os.Stat(p.Record()); err != nil || st.Mode().Perm() != 0o600 {
		t.Error(st, err)
	}
}

func TestAddressesOfARecord(t *testing.T) {
	m := &member.Record{Role: member.RoleManager, Advertise: "10.0.0.1:2377", Listen: "0.0.0.0:2400", Managers: []string{"10.0.0.2:2377"}}
	w := &member.Record{Role: member.RoleWorker, Advertise: "10.0.0.9", DataPath: "10.1.0.9", Managers: []string{"10.0.0.1:2377"}, Subnet: "10.254.1.0/26", MaxTasks: 1000}
	for what, v := range map[string][2]string{
		"a manager dials":          {fmt.Sprint(m.Dial()), "[127.0.0.1:2400 10.0.0.2:2377]"},
		"others reach managers at": {fmt.Sprint(m.ManagerAddrs()), "[10.0.0.1:2377 10.0.0.2:2377]"},
		"a worker dials":           {fmt.Sprint(w.Dial()), "[10.0.0.1:2377]"},
		"underlays":                {m.Underlay() + " " + w.Underlay(), "10.0.0.1 10.1.0.9"},
		"task limits":              {fmt.Sprint(m.TaskLimit(), w.TaskLimit()), "0 61"},
	} {
		if v[0] != v[1] {
			t.Errorf("%s %s, want %s", what, v[0], v[1])
		}
	}
}
