package conn

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"skep.dev/libs/pki"
)

// Info is what the daemon says of its node at GET /info on node.sock.
type Info struct {
	NodeID       string   `json:"node_id"`
	Role         string   `json:"role"` // manager, worker
	ClusterID    string   `json:"cluster_id"`
	ManagerAddrs []string `json:"manager_addrs"`
	Version      string   `json:"version"`
	Hostname     string   `json:"hostname"`
	Addr         string   `json:"addr"`
	State        string   `json:"state"`
	Upgrade      string   `json:"upgrade"` // what went wrong with the last one
	Error        string   `json:"error"`   // why it does not do what it should
}

// LocalInfo asks the daemon of this machine; an error means that there is none, or that it may not be asked.
func LocalInfo(ctx context.Context, runDir string) (Info, error) {
	var i Info
	b, err := askDaemon(ctx, runDir, "/info")
	if err != nil {
		return i, err
	}
	if err := json.Unmarshal(b, &i); err != nil {
		return i, fmt.Errorf("read the answer of this node's daemon: %w", err)
	}
	return i, nil
}

// CA is the cluster's authority: a context's own, else what the daemon of this machine says, whose socket only root can
// open.
func CA(ctx context.Context, o Options) (*x509.Certificate, error) {
	if o.Context != "" {
		c, err := o.Store.Load(o.Context)
		if err != nil {
			return nil, err
		}
		return pki.ParseCertificate([]byte(c.CA))
	}
	b, err := askDaemon(ctx, o.RunDir, "/ca")
	if err != nil {
		return nil, err
	}
	return pki.ParseCertificate(b)
}

// maxAnswer bounds what the daemon may say, bytes.
const maxAnswer = 1 << 20

func askDaemon(ctx context.Context, runDir, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", filepath.Join(runDir, "node.sock"))
	}}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://node"+path, nil)
	if err != nil {
		return nil, err
	}
	res, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask the daemon of this node: %s", res.Status)
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("read the answer of this node's daemon: %w", err)
	}
	return b, nil
}
