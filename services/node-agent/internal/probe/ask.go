package probe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// tcp connects and hangs up.
func (n *network) tcp(ctx context.Context, port uint32) (string, error) {
	c, err := n.dial(ctx, port)
	if err != nil {
		return "", err
	}
	_ = c.Close()
	return fmt.Sprintf("port %d accepts connections", port), nil
}

const (
	// httpLimit bounds what is read of an answer, its headers included.
	httpLimit = 64 << 10
	// interim is how many 1xx answers are skipped before the one that counts.
	interim = 5
)

// http asks for a path. A status from 200 to 399 passes; a redirection is not followed.
func (n *network) http(ctx context.Context, port uint32, path string) (string, error) {
	u, err := url.ParseRequestURI(path)
	if err != nil {
		return "", fmt.Errorf("the path %q of the check: %w", path, err)
	}
	c, err := n.dial(ctx, port)
	if err != nil {
		return "", err
	}
	defer c.Close()
	defer deadline(ctx, c)()
	host := net.JoinHostPort("localhost", strconv.Itoa(int(port)))
	u.Scheme, u.Host = "http", host
	req := &http.Request{
		Method: http.MethodGet, URL: u, Host: host, Close: true, ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"User-Agent": {"skep-probe"}, "Accept": {"*/*"}},
	}
	if err := req.Write(c); err != nil {
		return "", fmt.Errorf("GET %s: %w", path, err)
	}
	r := bufio.NewReader(io.LimitReader(c, httpLimit))
	resp, err := http.ReadResponse(r, req)
	for i := 0; err == nil && resp.StatusCode < 200 && i < interim; i++ {
		resp, err = http.ReadResponse(r, req)
	}
	if err != nil {
		return "", fmt.Errorf("GET %s: %w", path, err)
	}
	text := "HTTP " + resp.Status
	// The beginning of the body says what is wrong; a body that breaks off has been seen all the same.
	body, _ := io.ReadAll(io.LimitReader(resp.Body, OutputLimit-int64(len(text))-2))
	if b := strings.TrimSpace(string(body)); b != "" {
		text += ": " + b
	}
	if resp.StatusCode < 200 || resp.StatusCode > 399 {
		return "", errors.New(text)
	}
	return text, nil
}

// grpcLimit bounds an answer of the health service, which is a few bytes.
const grpcLimit = 64 << 10

// grpc asks the health service, in clear text.
func (n *network) grpc(ctx context.Context, port uint32, service string) (string, error) {
	if n.err != nil {
		return "", fmt.Errorf("%w: %w", errNoNetwork, n.err) // the client would make text of it
	}
	conn, err := grpc.NewClient("passthrough:///"+net.JoinHostPort("localhost", strconv.Itoa(int(port))),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy(), grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(),
		grpc.WithUserAgent("skep-probe"), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(grpcLimit)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return n.dial(ctx, port) }))
	if err != nil {
		return "", fmt.Errorf("gRPC on port %d: %w", port, err)
	}
	defer conn.Close()
	r, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: service})
	if err != nil {
		s := status.Convert(err)
		return "", fmt.Errorf("gRPC health check: %s: %s", s.Code(), s.Message())
	}
	if r.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		return "", fmt.Errorf("gRPC health check: %s", r.GetStatus())
	}
	return "gRPC health check: SERVING", nil
}
