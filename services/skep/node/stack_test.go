package node

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/pki"
	"skep.dev/libs/seal"
)

// checkStack deploys a stack with a secret through the broker, the state and the vault of a node as they run, gives the secret
// another value, goes back, and removes it all.
func checkStack(t *testing.T, p Paths) {
	t.Helper()
	nc, err := nats.Connect("nats://skep", nats.SetCustomDialer(socket(p.Broker())))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	pem, err := os.ReadFile(filepath.Join(p.Certs(), pki.CAFile))
	if err != nil {
		t.Fatal(err)
	}
	ca, err := pki.ParseCertificate(pem)
	if err != nil {
		t.Fatal(err)
	}
	const name = "blog_pw"
	labels := map[string]string{"com.docker.stack.namespace": "blog"}
	sealed := func(value string, version uint64) []byte {
		out, err := seal.ToVault(ca, mustAsk(t, nc, api.VaultKey, &skepv1.Empty{}), &skepv1.SealedValue{Kind: skepv1.SecretKind_SECRET_KIND_SECRET, Name: name, Version: version, Value: []byte(value)})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	file := func(s *skepv1.Secret) []*skepv1.StackFile {
		return []*skepv1.StackFile{{Name: name, Id: s.Meta.Id, Version: s.Versions[len(s.Versions)-1].Number}}
	}
	made := mustAsk(t, nc, api.SecretCreate, &skepv1.CreateSecretRequest{Spec: &skepv1.SecretSpec{Name: name, Labels: labels}, Sealed: sealed("one", 1)}).Secret
	// No node can run it: what is looked at is what is stored.
	svc := &skepv1.ServiceSpec{Name: "blog_web", Task: &skepv1.TaskSpec{
		Container: &skepv1.ContainerSpec{Image: "example.invalid/none:1", Secrets: []*skepv1.FileReference{{Name: name}}},
		Placement: &skepv1.Placement{Constraints: []string{"node.labels.none==there"}}, Networks: []*skepv1.NetworkAttachment{{Target: "blog_net"}},
	}}
	spec := &skepv1.StackSpec{Name: "blog", Services: []*skepv1.ServiceSpec{svc}, Networks: []*skepv1.NetworkSpec{{Name: "blog_net"}}, Secrets: file(made), ResolveImage: "never"}
	settled := func(revision, version uint64) {
		t.Helper()
		for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
			st := mustAsk(t, nc, api.StackInspect, &skepv1.Ref{Ref: "blog"}).Stack
			if st.State == skepv1.StackState_STACK_STATE_DEPLOYED && st.Revision == revision {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("not deployed: %v", st)
			}
		}
		web := mustAsk(t, nc, api.ServiceInspect, &skepv1.Ref{Ref: "blog_web"}).Service
		if got := web.Spec.Task.Container.Secrets[0].Version; got != version {
			t.Errorf("version %d of the secret, want %d", got, version)
		}
	}
	mustAsk(t, nc, api.StackDeploy, &skepv1.DeployStackRequest{Spec: spec})
	settled(1, 1)
	update := func(value string, version uint64) *skepv1.SecretReply {
		return mustAsk(t, nc, api.SecretUpdate, &skepv1.UpdateSecretRequest{Ref: name, IfChanged: true, Hold: true, Sealed: sealed(value, version)})
	}
	if !update("one", 2).Unchanged {
		t.Error("the same value makes a version")
	}
	spec = proto.CloneOf(spec)
	spec.Secrets = file(update("two", 2).Secret)
	mustAsk(t, nc, api.StackDeploy, &skepv1.DeployStackRequest{Spec: spec, ExpectRevision: 1})
	settled(2, 2)
	mustAsk(t, nc, api.StackRollback, &skepv1.RollbackStackRequest{Ref: "blog"})
	settled(3, 1)
	mustAsk(t, nc, api.StackRemove, &skepv1.RemoveStackRequest{Ref: "blog"})
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		_, err := api.Call(t.Context(), nc, api.StackInspect, &skepv1.Ref{Ref: "blog"})
		if fault.Is(err, fault.CodeNotFound) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the stack stays: %v", err)
		}
	}
	left := fmt.Sprint(mustAsk(t, nc, api.SecretList, &skepv1.ListSecretsRequest{}).Secrets, mustAsk(t, nc, api.ServiceList, &skepv1.ListServicesRequest{}).Services,
		mustAsk(t, nc, api.NetworkList, &skepv1.ListNetworksRequest{Filters: []*skepv1.Filter{{Key: "type", Values: []string{"custom"}}}}).Networks)
	if left != "[] [] []" {
		t.Errorf("the stack left %s", left)
	}
}

func mustAsk[Q, R proto.Message](t *testing.T, nc *nats.Conn, e api.Endpoint[Q, R], req Q) R {
	t.Helper()
	r, err := api.Call(t.Context(), nc, e, req)
	if err != nil {
		t.Fatalf("%s: %v", e.Subject(), err)
	}
	return r
}
