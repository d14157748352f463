package conn

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
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
	Error        string   `json:"error"`   // what keeps it from its group of managers, or from starting
	Upgrade      string   `json:"upgrade"` // what went wrong with the last one
}

// Link is what the daemon says at GET /link of how its node stands with the managers.
type Link struct {
	State   string `json:"state"`    // up, cut off, refused, silent, leadless
	Why     string `json:"why"`      // of all but up
	SinceMs int64  `json:"since_ms"` // unix ms
}

// ErrNotRoot: the daemon answers root alone, and this is not root.
var ErrNotRoot = errors.New("only root may ask the daemon of this machine")

// LocalLink asks the daemon of this machine how its node stands with the managers. The daemon asks them for that.
func LocalLink(ctx context.Context, runDir string) (Link, error) {
	var l Link
	b, err := askDaemon(ctx, runDir, "/link")
	if err != nil {
		return l, err
	}
	if err := json.Unmarshal(b, &l); err != nil {
		return l, fmt.Errorf("read the answer of this node's daemon: %w", err)
	}
	return l, nil
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
	if errors.Is(err, os.ErrPermission) {
		return nil, fmt.Errorf("%w (%s)", ErrNotRoot, filepath.Join(runDir, "node.sock"))
	}
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
