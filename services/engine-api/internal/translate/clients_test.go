package translate

import (
	"cmp"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/network"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/compose"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// TestDockersFlagsMakeSkepsSpec: `docker service create F` makes the service that `skep service create F` makes. The bodies are those
// that Docker's client 28.2 sends for the flags, and 20.10 where it sends another one; the specs are what the flags of skep make. What is
// not known to the one is left out for both: the ids of secrets, and names of networks for their ids.
func TestDockersFlagsMakeSkepsSpec(t *testing.T) {
	files, err := filepath.Glob("testdata/create/*.json")
	if err != nil || len(files) < 15 {
		t.Fatalf("%d recorded bodies: %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".json"), func(t *testing.T) {
			var c struct {
				Flags string
				Body  json.RawMessage
				Old   json.RawMessage `json:"body_20.10"`
				Skep  json.RawMessage
			}
			read(t, file, &c)
			want := &skepv1.ServiceSpec{}
			if err := protojson.Unmarshal(c.Skep, want); err != nil {
				t.Fatal(err)
			}
			spec.Defaults(want)
			for _, one := range []struct {
				body json.RawMessage
				v    api
			}{{c.Body, 50}, {c.Old, 41}} {
				if one.body == nil {
					continue
				}
				in, warn, err := DecodeService(one.body)
				if err != nil || len(warn) > 0 {
					t.Fatalf("decode: %v %v", warn, err)
				}
				got, warn, err := CreateFromDocker(in, nil, one.v)
				if err != nil || len(warn) > 0 {
					t.Fatalf("%s: %v %v", c.Flags, warn, err)
				}
				spec.Defaults(got)
				if err := spec.Validate(got); err != nil {
					t.Errorf("%s: %v", c.Flags, err)
				}
				k := got.Task.Container
				for _, f := range append(k.Secrets, k.Configs...) {
					f.Id = ""
				}
				for _, n := range got.Task.Networks {
					n.Target = strings.TrimPrefix(n.Target, "id-")
				}
				if !proto.Equal(got, want) {
					t.Errorf("%s\ndocker:\n%s\nskep:\n%s", c.Flags, protojson.Format(got), protojson.Format(want))
				}
			}
		})
	}
}

func read(t *testing.T, file string, into any) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(b, into)
	}
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

// TestAStackIsWhatSkepMakesOfTheFile: `docker stack deploy` makes the services and networks that `skep stack deploy` makes of the file.
func TestAStackIsWhatSkepMakesOfTheFile(t *testing.T) {
	stack, err := compose.Load(t.Context(), compose.Options{Files: []string{"testdata/stack/stack.yml"}, Stack: "st"})
	if err != nil {
		t.Fatal(err)
	}
	if len(stack.Spec.Services) != 3 || len(stack.Spec.Networks) != 3 {
		t.Fatalf("the file has %d services and %d networks", len(stack.Spec.Services), len(stack.Spec.Networks))
	}
	for _, want := range stack.Spec.Services {
		body, err := os.ReadFile("testdata/stack/services-" + want.Name + ".json")
		if err != nil {
			t.Fatal(err)
		}
		in, warn, err := DecodeService(body)
		if err != nil || len(warn) > 0 {
			t.Fatalf("decode: %v %v", warn, err)
		}
		got, warn, err := CreateFromDocker(in, nil, api(50))
		if err != nil || len(warn) > 0 {
			t.Fatalf("%s: %v %v", want.Name, warn, err)
		}
		for _, s := range []*skepv1.ServiceSpec{got, want} {
			spec.Defaults(s)
			sorted(s)
		}
		if !proto.Equal(got, want) {
			t.Errorf("docker:\n%s\nskep:\n%s", protojson.Format(got), protojson.Format(want))
		}
	}
	for _, want := range stack.Spec.Networks {
		var in network.CreateRequest
		read(t, "testdata/stack/networks-"+want.Name+".json", &in)
		got, err := NetworkFromDocker(in)
		if err != nil {
			t.Fatal(err)
		}
		spec.NetworkDefaults(want)
		if !proto.Equal(got, want) {
			t.Errorf("docker: %v\nskep: %v", got, want)
		}
	}
}

// sorted brings lists without an order of their own into one, and takes away what a client looked up.
func sorted(s *skepv1.ServiceSpec) {
	c := s.Task.Container
	slices.SortFunc(c.Mounts, func(a, b *skepv1.Mount) int { return strings.Compare(a.Target, b.Target) })
	slices.SortFunc(s.Endpoint.Ports, func(a, b *skepv1.PortConfig) int { return cmp.Compare(a.TargetPort, b.TargetPort) })
	for _, f := range slices.Concat(c.Secrets, c.Configs) {
		f.Id = ""
	}
	for _, n := range s.Task.Networks {
		slices.Sort(n.Aliases)
	}
}
