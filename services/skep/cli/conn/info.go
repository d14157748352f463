package conn

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"time"
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
}

// LocalInfo asks the daemon of this machine; an error means that there is none, or that it may not be asked.
func LocalInfo(ctx context.Context, runDir string) (Info, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var i Info
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", filepath.Join(runDir, "node.sock"))
	}}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://node/info", nil)
	if err != nil {
		return i, err
	}
	res, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return i, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return i, fmt.Errorf("ask the daemon of this node: %s", res.Status)
	}
	if err := json.NewDecoder(res.Body).Decode(&i); err != nil {
		return i, fmt.Errorf("read the answer of this node's daemon: %w", err)
	}
	return i, nil
}
