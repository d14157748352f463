package conn

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
)

// Root on a manager whose broker hangs reaches another manager, with this machine's certificate.
func TestAnotherManagerWhenThisOneHangs(t *testing.T) {
	ca := pkitest.NewCA(t)
	me := pki.Identity{NodeID: "me", Role: pki.Manager}
	srv := broker(t, &server.Options{
		ServerName: "other", Host: "127.0.0.1", Port: -1, NoLog: true, NoSigs: true, TLSHandshakeFirst: true, TLSTimeout: 5,
		TLSConfig: pki.ServerTLS(pkitest.Store(t, ca, pki.Identity{NodeID: "other", Role: pki.Manager}, time.Hour)),
	})
	run, data := t.TempDir(), t.TempDir()
	cert, key := pkitest.Certify(t, ca, me, time.Hour)
	if _, err := pki.Create(filepath.Join(data, "certs"), cert, key, ca.CertPEM()); err != nil {
		t.Fatal(err)
	}
	rec, err := json.Marshal(map[string]any{"node_id": "me", "role": "manager", "managers": []string{"127.0.0.1:1", srv.Addr().String()}})
	if err == nil {
		err = os.WriteFile(filepath.Join(data, "node.json"), rec, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(run, "skep.sock")) // the kernel takes connections, nobody answers
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	at := ""
	began := time.Now()
	nc, err := Dial(t.Context(), Options{RunDir: run, DataDir: data, Elsewhere: func(addr string) { at = addr }})
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if took := time.Since(began); nc.ConnectedServerName() != "other" || at != srv.Addr().String() || took > 4*time.Second {
		t.Errorf("connected to %s at %s after %v", nc.ConnectedServerName(), at, took)
	}
}
