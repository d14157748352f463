package translate

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

var update = flag.Bool("update", false, "write the golden files")

// everything is a spec with all that some version of the API does not have.
func everything() swarm.ServiceSpec {
	n := int64(1)
	return swarm.ServiceSpec{TaskTemplate: swarm.TaskSpec{
		ContainerSpec: &swarm.ContainerSpec{
			Image: "nginx", Sysctls: map[string]string{"net.core.somaxconn": "1"}, CapabilityAdd: []string{"CAP_CHOWN"}, CapabilityDrop: []string{"CAP_KILL"},
			Ulimits: []*container.Ulimit{{Name: "nofile"}}, OomScoreAdj: 1, Healthcheck: &container.HealthConfig{Test: []string{"NONE"}, StartInterval: 1},
			Privileges: &swarm.Privileges{CredentialSpec: &swarm.CredentialSpec{Config: "id"}, Seccomp: &swarm.SeccompOpts{Mode: "unconfined"},
				AppArmor: &swarm.AppArmorOpts{Mode: "disabled"}, NoNewPrivileges: true},
			Configs: []*swarm.ConfigReference{{ConfigID: "id", Runtime: &swarm.ConfigReferenceRuntimeTarget{}}},
			Mounts:  []mount.Mount{{Type: "tmpfs", Target: "/t", TmpfsOptions: &mount.TmpfsOptions{SizeBytes: 1, Options: [][]string{{"noexec"}}}}},
		},
		Placement: &swarm.Placement{MaxReplicas: 2},
		Resources: &swarm.ResourceRequirements{Limits: &swarm.Limit{Pids: 7, NanoCPUs: 1e9}, SwapBytes: &n, MemorySwappiness: &n},
	}, Mode: swarm.ServiceMode{GlobalJob: &swarm.GlobalJob{}}}
}

// TestWhatVersionsDoNotHave holds what each version takes away, and what is left, against a file.
func TestWhatVersionsDoNotHave(t *testing.T) {
	const file = "testdata/versions.txt"
	var b strings.Builder
	var before []string
	for _, v := range []api{24, 39, 40, 41, 43, 44, 45, 46, 51, 52, newest} {
		s := everything()
		taken := Downgrade(&s, v)
		b.WriteString(fmt.Sprintf("1.%d takes ", v) + strings.Join(taken, ", ") + "\n  leaves " + asJSON(t, s) + "\n")
		if before != nil && slices.ContainsFunc(taken, func(f string) bool { return !slices.Contains(before, f) }) {
			t.Errorf("1.%d takes what an older version has", v)
		}
		before = taken
	}
	if len(before) != 0 {
		t.Errorf("the newest version takes %v", before)
	}
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil || string(want) != b.String() {
		t.Errorf("%v: got\n%s\nwant\n%s", err, b.String(), want)
	}
}

// TestCreateByOldClients: what their version has no words for is left out with a warning, as Docker leaves it out without one. A
// job does not become a service that never ends.
func TestCreateByOldClients(t *testing.T) {
	in := everything()
	if _, _, err := CreateFromDocker(in, nil, api(40)); !fault.Is(err, fault.CodeInvalid) || !strings.Contains(err.Error(), "1.41") {
		t.Errorf("a job by a client of 1.40: %v", err)
	}
	in = everything()
	in.Mode, in.TaskTemplate.ContainerSpec.Configs = swarm.ServiceMode{}, nil
	s, warn, err := CreateFromDocker(in, nil, api(40))
	if err != nil {
		t.Fatal(err)
	}
	if c := s.Task.Container; len(c.Ulimits) > 0 || c.OomScoreAdj != 0 || s.Task.Resources.Limits.Pids != 0 || len(c.Sysctls) == 0 || s.Task.Placement.MaxReplicasPerNode != 2 {
		t.Errorf("a client of 1.40 made %v", s)
	}
	if !slices.ContainsFunc(warn, func(w string) bool { return strings.HasPrefix(w, "ContainerSpec.Ulimits is left out") }) {
		t.Errorf("it was told %q", warn)
	}
}

// TestUpdatesByOldClients: what their version has no words for stays as it is. Who sends it back as it is shown to others is not
// warned, who sends something else is.
func TestUpdatesByOldClients(t *testing.T) {
	s := stored(func(s *skepv1.ServiceSpec) {
		s.Task.Container.Ulimits = []*skepv1.Ulimit{{Name: "nofile", Soft: 1, Hard: 2}}
		s.Task.Container.Sysctls = map[string]string{"net.core.somaxconn": "1"}
	})
	for _, c := range []struct {
		v     api
		ulim  []*container.Ulimit
		warns bool
	}{
		{40, nil, false}, {40, []*container.Ulimit{{Name: "nofile", Soft: 1, Hard: 2}}, false}, {40, []*container.Ulimit{{Name: "nofile", Soft: 5, Hard: 5}}, true},
	} {
		in := clone(t, ServiceSpecToDocker(s))
		in.TaskTemplate.ContainerSpec.Ulimits = c.ulim
		got, warn, err := UpdateFromDocker(s, in, nil, c.v)
		if err != nil || !proto.Equal(got, s) || (len(warn) > 0) != c.warns {
			t.Errorf("a client of 1.%d that sends %v: %v %q %v", c.v, c.ulim, got, warn, err)
		}
	}
	in := clone(t, ServiceSpecToDocker(s))
	in.TaskTemplate.ContainerSpec.Ulimits = nil
	if got, _, err := UpdateFromDocker(s, in, nil, api(41)); err != nil || len(got.Task.Container.Ulimits) > 0 {
		t.Errorf("a client of 1.41 that sends none takes them away: %v %v", got, err)
	}
}

// TestEventsForOldClients: status, id and from stand in those of containers and images, for clients before 1.52.
func TestEventsForOldClients(t *testing.T) {
	of := func(typ events.Type) events.Message {
		return events.Message{Type: typ, Action: "start", Actor: events.Actor{ID: "x", Attributes: map[string]string{"image": "nginx"}}, Scope: "local", Time: 7, TimeNano: 7e9}
	}
	const plain = `"Type":"container","Action":"start","Actor":{"ID":"x","Attributes":{"image":"nginx"}},"scope":"local","time":7,"timeNano":7000000000}`
	for _, c := range []struct {
		typ  events.Type
		v    api
		want string
	}{
		{"container", 51, `{"status":"start","id":"x","from":"nginx",` + plain},
		{"container", 52, `{` + plain},
		{"image", 51, `{"status":"start","id":"x",` + strings.Replace(plain, `"container"`, `"image"`, 1)},
		{"service", 24, `{` + strings.Replace(plain, `"container"`, `"service"`, 1)},
	} {
		if got := asJSON(t, EventFor(of(c.typ), c.v)); got != c.want {
			t.Errorf("%s for 1.%d: %s, want %s", c.typ, c.v, got, c.want)
		}
	}
}

// TestBodies: what is no spec, and what only old or mistaken clients say.
func TestBodies(t *testing.T) {
	for _, c := range []struct{ body, err, warn string }{
		{``, "got EOF while reading request body", ""},
		{`{`, "invalid JSON", ""},
		{`{"Name":3}`, "invalid JSON", ""},
		{`{} {}`, "unexpected content after JSON", ""},
		{`{"TaskTemplate":{"ContainerSpec":{"DNSConfig":{"Nameservers":["nowhere"]}}}}`, "invalid JSON", ""},
		{`{"Naem":"web","TaskTemplate":{"ContainerSpec":{"Image":"nginx"}}}`, "", `"Naem" is not known`},
		{`{"Networks":[{"Target":"back"}],"TaskTemplate":{"ContainerSpec":{"Image":"nginx"}}}`, "", ""},
		{`{"Networks":[{"Target":"back"}],"TaskTemplate":{"ContainerSpec":{"Image":"nginx"},"Networks":[{"Target":"front"}]}}`, "Networks and TaskTemplate.Networks differ", ""},
	} {
		in, warn, err := DecodeService([]byte(c.body))
		switch {
		case c.err == "" && err != nil || c.err != "" && (!fault.Is(err, fault.CodeInvalid) || !strings.Contains(err.Error(), c.err)):
			t.Errorf("%s: %v, want %q", c.body, err, c.err)
		case (c.warn == "") != (len(warn) == 0) || c.warn != "" && !strings.Contains(warn[0], c.warn):
			t.Errorf("%s: warned %q, want %q", c.body, warn, c.warn)
		case strings.HasPrefix(c.body, `{"Networks"`) && err == nil && in.TaskTemplate.Networks[0].Target != "back":
			t.Errorf("%s: the service is on %v", c.body, in.TaskTemplate.Networks)
		}
	}
}
