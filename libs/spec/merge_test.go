package spec

import (
	"math/rand/v2"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

func specOf(t *testing.T, text string) *skepv1.ServiceSpec {
	t.Helper()
	s := &skepv1.ServiceSpec{Name: "web"}
	if err := prototext.Unmarshal([]byte(text), s); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return s
}

func TestMerge(t *testing.T) {
	c := func(s string) string { return "task { container { " + s + " } }" }
	for _, x := range []struct{ name, base, want, cur, out, conflict string }{
		{name: "nobody else", base: c(`image: "a"`), want: c(`image: "b"`), cur: c(`image: "a"`), out: c(`image: "b"`)},
		{name: "other fields", base: c(`image: "a"`), want: c(`image: "b"`), cur: c(`image: "a" user: "u"`), out: c(`image: "b" user: "u"`)},
		{name: "a scale", base: `mode { replicated { replicas: 1 } }` + c(`image: "a"`), want: `mode { replicated { replicas: 1 } }` + c(`image: "b"`), cur: `mode { replicated { replicas: 9 } }` + c(`image: "a"`),
			out: `mode { replicated { replicas: 9 } }` + c(`image: "b"`)},
		{name: "alike", base: c(`image: "a"`), want: c(`image: "b"`), cur: c(`image: "b"`), out: c(`image: "b"`)},
		{name: "image", base: c(`image: "a"`), want: c(`image: "b"`), cur: c(`image: "c"`), conflict: "image"},
		{name: "replicas", base: `mode { replicated { replicas: 1 } }`, want: `mode { replicated { replicas: 2 } }`, cur: `mode { replicated { replicas: 3 } }`, conflict: "replicas"},
		{name: "to nothing", base: c(`user: "u"`), want: c(``), cur: c(`user: "u" dir: "/"`), out: c(`dir: "/"`)},
		{name: "to nothing and something", base: c(`user: "u"`), want: c(``), cur: c(`user: "v"`), conflict: "user"},
		{name: "env", base: c(`env: ["A=1", "B=1"]`), want: c(`env: ["A=2", "B=1", "D=1"]`), cur: c(`env: ["A=1", "C=1"]`), out: c(`env: ["A=2", "C=1", "D=1"]`)},
		{name: "env, one of them", base: c(`env: ["A=1"]`), want: c(`env: ["A=hush"]`), cur: c(`env: ["A=3"]`), conflict: "env A"},
		{name: "env gone and changed", base: c(`env: ["A=1"]`), want: c(``), cur: c(`env: ["A=3"]`), conflict: "env A"},
		{name: "last env gone", base: c(`env: ["A=1"]`), want: c(``), cur: c(`env: ["A=1"] user: "u"`), out: c(`user: "u"`)},
		{name: "labels", base: `labels { key: "a" value: "1" }`, want: `labels { key: "b" value: "1" }`, cur: `labels { key: "a" value: "1" } labels { key: "c" value: "1" }`,
			out: `labels { key: "b" value: "1" } labels { key: "c" value: "1" }`},
		{name: "label", base: `labels { key: "a" value: "1" }`, want: `labels { key: "a" value: "2" }`, cur: `labels { key: "a" value: "3" }`, conflict: "labels a"},
		{name: "command line", base: c(`args: "a"`), want: c(`args: ["a", "b"]`), cur: c(`args: ["a", "c"]`), conflict: "args"},
		{name: "ports", base: ``, want: `endpoint { ports { target_port: 80 published_port: 80 } }`, cur: `endpoint { ports { target_port: 81 published_port: 81 } }`,
			out: `endpoint { ports { target_port: 81 published_port: 81 } ports { target_port: 80 published_port: 80 } }`},
		{name: "port", base: ``, want: `endpoint { ports { target_port: 80 published_port: 80 } }`, cur: `endpoint { ports { target_port: 81 published_port: 80 } }`, conflict: "ports 80/tcp"},
		{name: "mounts", base: c(`mounts { target: "/a" source: "x" }`), want: c(`mounts { target: "/a" source: "x" read_only: true }`), cur: c(`mounts { target: "/a" source: "x" } mounts { target: "/b" }`),
			out: c(`mounts { target: "/a" source: "x" read_only: true } mounts { target: "/b" }`)},
		{name: "limits", base: ``, want: `task { resources { limits { nano_cpus: 5 } } }`, cur: `task { resources { limits { memory_bytes: 5 } } }`, out: `task { resources { limits { nano_cpus: 5 memory_bytes: 5 } } }`},
		{name: "update", base: `update { parallelism: 1 }`, want: `update { parallelism: 2 }`, cur: `update { parallelism: 3 }`, conflict: "update parallelism"},
		{name: "durations", base: `update { delay { seconds: 1 nanos: 5 } }`, want: `update { delay { seconds: 2 nanos: 5 } }`, cur: `update { delay { seconds: 1 nanos: 6 } }`, conflict: "update delay"},
		{name: "zero is a value", base: `mode { replicated { replicas: 2 } }`, want: `mode { replicated { } }`, cur: `mode { replicated { replicas: 2 } } health_budget: 1`, out: `mode { replicated { } } health_budget: 1`},
	} {
		base, want, cur := specOf(t, x.base), specOf(t, x.want), specOf(t, x.cur)
		before := proto.CloneOf(cur)
		got, err := Merge(base, want, cur)
		switch {
		case x.conflict != "":
			if !fault.Is(err, fault.CodeConflict) || !strings.Contains(err.Error(), "at the same time: "+x.conflict+";") || strings.Contains(err.Error(), "hush") {
				t.Errorf("%s: %v, %v", x.name, got, err)
			}
		case err != nil || !proto.Equal(got, specOf(t, x.out)):
			t.Errorf("%s: %v, %v", x.name, got, err)
		}
		if !proto.Equal(cur, before) || !proto.Equal(base, specOf(t, x.base)) || !proto.Equal(want, specOf(t, x.want)) {
			t.Errorf("%s: an argument was changed", x.name)
		}
	}
}

// Changes of different parts come to the same, whoever is first; a change on what nobody else changed is that change.
func TestMergeOrder(t *testing.T) {
	edits := []func(*skepv1.ServiceSpec){
		func(s *skepv1.ServiceSpec) { s.Task.Container.Image = "b" },
		func(s *skepv1.ServiceSpec) { s.Task.Container.Env = append(s.Task.Container.Env, "N=1") },
		func(s *skepv1.ServiceSpec) { s.Task.Container.Env = s.Task.Container.Env[1:] },
		func(s *skepv1.ServiceSpec) { s.Mode.GetReplicated().Replicas = 7 },
		func(s *skepv1.ServiceSpec) { s.Labels["x"] = "y" },
		func(s *skepv1.ServiceSpec) { delete(s.Labels, "a") },
		func(s *skepv1.ServiceSpec) { s.Update = &skepv1.UpdateConfig{Parallelism: 3} },
		func(s *skepv1.ServiceSpec) {
			s.Task.Networks = append(s.Task.Networks, &skepv1.NetworkAttachment{Target: "n"})
		},
		func(s *skepv1.ServiceSpec) { s.Task.ForceUpdate++ },
	}
	base := func() *skepv1.ServiceSpec {
		return specOf(t, `labels { key: "a" value: "1" } mode { replicated { replicas: 1 } } task { container { image: "a" env: ["A=1", "B=2"] } }`)
	}
	all := base()
	for _, e := range edits {
		e(all)
	}
	for range 50 {
		cur := base()
		for _, i := range rand.Perm(len(edits)) {
			want := base()
			edits[i](want)
			alone, err := Merge(base(), want, base())
			if err != nil || !proto.Equal(alone, want) {
				t.Fatalf("edit %d alone: %v, %v", i, alone, err)
			}
			if cur, err = Merge(base(), want, cur); err != nil {
				t.Fatalf("edit %d: %v", i, err)
			}
		}
		if !proto.Equal(cur, all) {
			t.Fatalf("%v, want %v", cur, all)
		}
	}
}
