package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"

	"skep.dev/libs/member"
)

// Info is what the daemon of this machine says of itself.
type Info = member.Info

// controlClient talks to the daemon of this machine.
func controlClient(p Paths) *http.Client {
	// A connection for each question: nobody closes a client that is made for one.
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", p.Control())
	}}}
}

// Running asks the daemon of this machine who it is; an error when none answers.
func Running(ctx context.Context, p Paths) (Info, error) { return ask(ctx, p, http.MethodGet, "/info") }

func ask(ctx context.Context, p Paths, method, path string) (Info, error) {
	var info Info
	req, err := http.NewRequestWithContext(ctx, method, "http://node"+path, nil)
	if err != nil {
		return info, err
	}
	resp, err := controlClient(p).Do(req)
	if err != nil {
		return info, fmt.Errorf("ask the skep daemon: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		var b [4096]byte
		n, _ := resp.Body.Read(b[:])
		return info, errors.New(string(b[:max(0, n-1)]))
	}
	return info, json.NewDecoder(resp.Body).Decode(&info)
}
