package agent

import (
	"context"
	"crypto/x509"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
	"skep.dev/libs/rpc"
	"skep.dev/libs/seal"
	skepv1 "skep.dev/proto/skep/v1"
)

// safe is a vault that keeps registry credentials for a node's tasks.
type safe struct {
	ca  *pki.CA
	key *seal.Key

	mu    sync.Mutex
	kept  map[string]*skepv1.DeliveredValue
	asked int // requests that were answered with credentials
	away  bool
}

// trust gives the node a certificate, and a vault that knows it.
func (n *node) trust() *safe {
	n.t.Helper()
	s := &safe{ca: pkitest.NewCA(n.t), kept: map[string]*skepv1.DeliveredValue{}}
	n.cfg.Certificate = pkitest.Store(n.t, s.ca, pki.Identity{NodeID: n.id, Role: pki.Manager}, time.Hour)
	var err error
	if s.key, err = seal.NewKey(); err != nil {
		n.t.Fatal(err)
	}
	srv, err := rpc.NewServer(n.nc, rpc.Config{Name: "skep-vault", Log: zap.NewNop()})
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = srv.Close() })
	err = api.HandleNode(srv, api.VaultDeliver, func(_ context.Context, _ string, r *skepv1.DeliverRequest) (*skepv1.DeliverReply, error) {
		ask, _, err := seal.Asked([]*x509.Certificate{s.ca.Cert}, r)
		if err != nil {
			return nil, fault.Denied("%v", err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.away {
			return nil, fault.Unavailable("no quorum")
		}
		d := &skepv1.Delivery{Ask: seal.Digest(r)}
		give := func(task, o string) {
			t := &skepv1.DeliveredTask{TaskId: task, RegistryAuth: o}
			if v := s.kept[o]; v != nil {
				d.Values = append(d.Values, v)
				s.asked++
			} else if o != "" {
				t.Refused = "the credentials of its registry are not kept any more"
			}
			d.Tasks = append(d.Tasks, t)
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		for _, t := range ask.Tasks {
			if !t.Pull {
				return nil, fault.Invalid("task %s asks for its files and has none", t.TaskId)
			}
			give(t.TaskId, n.specs[n.tasks[t.TaskId].ServiceId].Spec.Task.Container.RegistryAuth)
		}
		for _, o := range ask.RegistryAuth {
			give("", o)
		}
		public, err := s.key.Public(s.ca)
		if err != nil {
			return nil, err
		}
		sealed, err := s.key.To(ask.Reader, d)
		return &skepv1.DeliverReply{Key: public, Sealed: sealed}, err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return s
}

func (s *safe) put(host, user, password string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := id.New()
	s.kept[o] = &skepv1.DeliveredValue{Id: o, Version: 1, Kind: skepv1.SecretKind_SECRET_KIND_REGISTRY, Name: host,
		Value: fmt.Appendf(nil, `{"username":%q,"password":%q}`, user, password)}
	return o
}

func (s *safe) state(away bool) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = away
	return s.asked
}

func TestRegistryCredentials(t *testing.T) {
	n := newNode(t)
	h, other := newHub(t), newHub(t)
	n.cfg.Registries = &Registries{Registries: map[string]Registry{h.addr: {PlainHTTP: true}, other.addr: {PlainHTTP: true}}}
	digest := h.push(t, "private/app:1", busybox(t, map[string]string{"etc/p": "p"}, nil))
	other.push(t, "private/app:1", busybox(t, map[string]string{"etc/p": "q"}, nil))
	other.authorized.Store(0) // what pushed the image logged in
	vault := n.trust()
	n.start()
	with := func(image, auth string) *skepv1.ServiceSpec {
		s := n.spec("sleep", "1000")
		s.Task.Container.Image, s.Task.Container.RegistryAuth = image, auth
		return s
	}
	good, wrong := vault.put(h.addr, "me", "secret"), vault.put(h.addr, "me", "hunter2-is-wrong")

	// Without, with the wrong ones, with such as are not kept any more: a clear word, and no password in it.
	for auth, want := range map[string]string{"": "pull access denied", wrong: "pull access denied", id.New(): "not kept any more"} {
		st := n.state(rejected, n.put(1, with(h.addr+"/private/app:1", auth))...)
		if !strings.Contains(st.Err, want) || strings.Contains(fmt.Sprint(st), "hunter2") {
			t.Errorf("%q: %v", auth, st)
		}
	}
	// They go to their own registry alone, whatever image the service came to use.
	if st := n.state(rejected, n.put(1, with(other.addr+"/private/app:1", good))...); !strings.Contains(st.Err, "pull access denied") {
		t.Errorf("%v", st)
	}
	if other.authorized.Load() != 0 {
		t.Error("credentials were sent to a registry they are not for")
	}

	// Resolving, and pulling apart from any task.
	for auth, want := range map[string]string{"": "pull access denied", good: "", id.New(): "not kept any more"} {
		r, err := api.Call(t.Context(), n.nc, api.ImageResolve, &skepv1.ResolveImageRequest{Ref: h.addr + "/private/app:1", RegistryAuth: auth})
		if want == "" && (err != nil || !strings.HasSuffix(r.Ref, digest)) || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("resolve with %q: %v %v", auth, r, err)
		}
	}

	// While the managers are away it waits, and says for what.
	vault.state(true)
	ids := n.put(2, with(h.addr+"/private/app:1@"+digest, good))
	n.await("the reason on show", func(m map[string]*skepv1.TaskStatus) bool {
		return strings.Contains(m[ids[0]].GetErr()+m[ids[0]].GetMessage(), "no quorum")
	})
	vault.state(false)
	n.state(running, ids...)

	// What is here starts without them.
	before := vault.state(true)
	n.state(running, n.put(1, with(h.addr+"/private/app:1@"+digest, good))...)
	n.state(running, n.put(1, with(h.addr+"/private/app:1@"+digest, ""))...) // as Docker has it: docs/registries.md
	if after := vault.state(false); after != before {
		t.Errorf("credentials were delivered %d times for an image that is here", after-before)
	}

	// Pulled apart from any task, as managers may.
	h.push(t, "private/early:1", busybox(t, map[string]string{"etc/e": "e"}, nil))
	for _, x := range []struct{ auth, want string }{{"", "pull access denied"}, {wrong, "pull access denied"}, {id.New(), "not kept any more"}, {good, ""}} {
		r, err := api.Call(t.Context(), n.nc, api.ImagePull.At(n.id), &skepv1.PullImageRequest{Ref: h.addr + "/private/early:1", RegistryAuth: x.auth})
		if x.want == "" && err != nil || x.want != "" && (err == nil || !strings.Contains(err.Error(), x.want)) {
			t.Errorf("pull with %q: %v %v", x.auth, r, err)
		}
	}
}
