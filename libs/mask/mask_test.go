package mask

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"
)

const secret = "hunter2"

func service(value string) *skepv1.Service {
	return &skepv1.Service{Spec: &skepv1.ServiceSpec{
		Name:   "db",
		Labels: map[string]string{"team": "red", "app.token": value, "traefik.http.middlewares.a.basicauth.users": "a:" + value},
		Task: &skepv1.TaskSpec{
			LogDriver: &skepv1.LogDriver{Name: "splunk", Options: map[string]string{"splunk-token": value}},
			Container: &skepv1.ContainerSpec{
				Image:   "postgres:16",
				Env:     []string{"DB_PASSWORD=" + value, "TZ=" + value, "BARE"},
				Command: []string{"sh", "-c", "exec app --password " + value + " --verbose; PGPASSWORD=" + value + " psql; TOKEN=" + value + " other 'api_key: " + value + "'"},
				Args:    []string{"--db-password", value, "--secret=" + value, "postgres://app:" + value + "@db:5432/app", "--port=80", "-Dapp.passwd=" + value},
				Health:  &skepv1.HealthConfig{Test: []string{"CMD-SHELL", "curl -u admin --token=" + value + " localhost"}, Http: &skepv1.HTTPCheck{Path: "/ok?token=" + value + "&x=1"}},
				Mounts:  []*skepv1.Mount{{Target: "/d", VolumeOpts: map[string]string{"o": "username=a,password=" + value}}},
				Labels:  map[string]string{"secret": value},

				RegistryAuth: value,
			},
		},
	}}
}

func TestNoSecretIsLeft(t *testing.T) {
	before := service(secret)
	same := proto.Clone(before).(*skepv1.Service)
	revs := ForViewer(&skepv1.ListRevisionsReply{Revisions: []*skepv1.Revision{{Number: 1, Spec: before.Spec}, {Number: 2, Spec: before.Spec}}})
	for _, m := range []proto.Message{ForViewer(before), ForViewer(&skepv1.ServiceReply{Service: before}), ForViewer(&skepv1.ListServicesReply{Services: []*skepv1.Service{before}}), revs} {
		text := protojson.Format(m)
		if strings.Contains(text, secret) {
			t.Errorf("%T shows the value:\n%s", m, text)
		}
		for _, stays := range []string{"DB_PASSWORD", "postgres:16", "--port=80", "--verbose", "@db:5432/app", "red", "BARE", "x=1", "localhost"} {
			if !strings.Contains(text, stays) {
				t.Errorf("%T lacks %s:\n%s", m, stays, text)
			}
		}
	}
	if !proto.Equal(before, same) {
		t.Error("what was masked is not a copy")
	}
}

// That a value changed can be seen, and only that.
func TestAChangeShows(t *testing.T) {
	env := func(v string) string { return ForViewer(service(v)).Spec.Task.Container.Env[0] }
	if first, again := env("a"), env("a"); first != again {
		t.Error("the same value looks different")
	}
	if env("a") == env("b") {
		t.Error("another value looks the same")
	}
	e := ForViewer(service("a")).Spec.Task.Container.Env
	if strings.TrimPrefix(e[0], "DB_PASSWORD=") == strings.TrimPrefix(e[1], "TZ=") {
		t.Error("equal values of two names can be told")
	}
}

func TestNothingElseIsHidden(t *testing.T) {
	for _, s := range []string{"--author=me", "compass: north", "passenger=7", "https://example.com/a:b@c", "tokenize", "--monkey=1", "x=y", "http://host:80/path"} {
		if got := text(s); got != s {
			t.Errorf("%q became %q", s, got)
		}
	}
}

func FuzzText(f *testing.F) {
	f.Add("--password=x token: y ://a:b@c")
	f.Add("\xff--secret  'q'\x00")
	f.Fuzz(func(t *testing.T, s string) {
		args := []string{"--token", s, s}
		words(args)
		if s != "" && len(s) > 12 && strings.Contains(args[1], s) {
			t.Fatalf("%q is shown", s)
		}
	})
}

// Of secrets and configs a viewer is told that they are there, and what they are called.
func TestViewersSeeNamesOfSecretsAlone(t *testing.T) {
	s := &skepv1.Secret{
		Meta: &skepv1.Meta{Id: "id", Version: 7}, Kind: skepv1.SecretKind_SECRET_KIND_SECRET, Spec: &skepv1.SecretSpec{Name: "pw", Labels: map[string]string{"k": secret}, TemplateDriver: "golang"},
		Versions: []*skepv1.SecretVersion{{Number: 1, Author: "user-ann", Size: 7}}, Uses: []*skepv1.SecretUse{{ServiceName: "web"}},
	}
	want := &skepv1.Secret{Meta: &skepv1.Meta{Id: "id"}, Kind: s.Kind, Spec: &skepv1.SecretSpec{Name: "pw"}}
	for _, got := range []*skepv1.Secret{
		ForViewer(s), ForViewer(&skepv1.SecretReply{Secret: s}).Secret, ForViewer(&skepv1.InspectSecretReply{Secret: s}).Secret,
		ForViewer(&skepv1.ListSecretsReply{Secrets: []*skepv1.Secret{s}}).Secrets[0],
	} {
		if !proto.Equal(got, want) {
			t.Errorf("a viewer sees %v", got)
		}
	}
	if s.Spec.Labels["k"] != secret || len(s.Versions) != 1 {
		t.Error("what was masked is not a copy")
	}
	if got := ForViewer(&skepv1.Secret{}); got.Spec.GetName() != "" {
		t.Errorf("an empty one: %v", got)
	}
}

// Viewers are told what happened, not who did it and from where, and nothing of secrets and users but their names.
func TestEventsForViewers(t *testing.T) {
	for _, e := range []*skepv1.Event{
		{Kind: "service", Name: "web", Verb: "update", Actor: "user-ada", Address: "192.0.2.7", Attributes: map[string]string{"name": "web", "replicas.new": "2"}},
		{Kind: "secret", Name: "db", Verb: "update", Actor: "root", Address: "local", Attributes: map[string]string{"name": "db", "version": "2"}, Message: "x"},
		{Kind: "user", Name: "ada", Verb: "issue", Actor: "user-boss", Address: "192.0.2.7", Attributes: map[string]string{"role": "admin"}},
	} {
		got := ForViewer(&skepv1.ListEventsReply{Events: []*skepv1.Event{e}}).Events[0]
		if got.Actor != "" || got.Address != "" || got.Name != e.Name || got.Verb != e.Verb {
			t.Errorf("%v is shown as %v", e, got)
		}
		if e.Kind != "service" && (got.Attributes["version"] != "" || got.Attributes["role"] != "" || got.Message != "") || e.Kind == "service" && got.Attributes["replicas.new"] != "2" {
			t.Errorf("%v is shown as %v", e, got)
		}
		if e.Address == "" {
			t.Error("the event itself was masked")
		}
	}
	if got := ForViewer(&skepv1.Event{Kind: "service", Actor: "scheduler"}); got.Actor != "scheduler" {
		t.Errorf("%v", got)
	}
	if got := ForViewer(&skepv1.Revision{Author: "user-ada", AuthorAddress: "192.0.2.7"}); got.AuthorAddress != "" {
		t.Errorf("%v", got)
	}
}
