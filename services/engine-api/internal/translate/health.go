package translate

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

// Checks over the network are told in the form of Docker's Test with words that Docker has not, and understood in it too: a client
// that sends a service back as it was keeps them.
const (
	testHTTP = "HTTP" // ["HTTP", ":8080/healthz"]
	testTCP  = "TCP"  // ["TCP", ":5432"]
	testGRPC = "GRPC" // ["GRPC", ":9000/shop.v1.Cart"]
)

func healthFromDocker(h *container.HealthConfig) (*skepv1.HealthConfig, error) {
	if h == nil {
		return nil, nil
	}
	if h.Retries > math.MaxInt32 || h.Retries < math.MinInt32 {
		return nil, fault.Invalid("ContainerSpec: Retries in HealthConfig is too large: %d", h.Retries)
	}
	out := &skepv1.HealthConfig{
		Interval: set(h.Interval), Timeout: set(h.Timeout), StartPeriod: set(h.StartPeriod), StartInterval: set(h.StartInterval), Retries: int32(h.Retries),
	}
	if err := testFromDocker(h.Test, out); err != nil {
		return nil, err
	}
	if h.Interval == 0 && h.Timeout == 0 && h.StartPeriod == 0 && h.StartInterval == 0 && h.Retries == 0 && len(h.Test) == 0 {
		return nil, nil
	}
	return out, nil
}

func testFromDocker(test []string, out *skepv1.HealthConfig) error {
	if len(test) == 0 {
		return nil
	}
	way := test[0]
	if way != testHTTP && way != testTCP && way != testGRPC {
		out.Test = test
		return nil
	}
	if len(test) != 2 {
		return fault.Invalid("ContainerSpec: the health check %s takes exactly one port", way)
	}
	port, rest, slash := strings.Cut(strings.TrimPrefix(test[1], ":"), "/")
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return fault.Invalid("ContainerSpec: the health check %s names no port in %q: write it as :8080", way, test[1])
	}
	switch {
	case way == testHTTP:
		out.Http = &skepv1.HTTPCheck{Port: uint32(n), Path: "/" + rest}
	case way == testGRPC:
		out.Grpc = &skepv1.GRPCCheck{Port: uint32(n), Service: rest}
	case slash:
		return fault.Invalid("ContainerSpec: the health check TCP takes a port alone: %q", test[1])
	default:
		out.TcpPort = uint32(n)
	}
	return nil
}

func healthToDocker(h *skepv1.HealthConfig) *container.HealthConfig {
	if h == nil {
		return nil
	}
	return &container.HealthConfig{
		Test: testToDocker(h), Interval: h.GetInterval().AsDuration(), Timeout: h.GetTimeout().AsDuration(),
		StartPeriod: h.GetStartPeriod().AsDuration(), StartInterval: h.GetStartInterval().AsDuration(), Retries: int(h.GetRetries()),
	}
}

func testToDocker(h *skepv1.HealthConfig) []string {
	switch {
	case h.GetHttp() != nil:
		return []string{testHTTP, fmt.Sprintf(":%d%s", h.Http.GetPort(), h.Http.GetPath())}
	case h.GetTcpPort() != 0:
		return []string{testTCP, fmt.Sprintf(":%d", h.GetTcpPort())}
	case h.GetGrpc().GetService() != "":
		return []string{testGRPC, fmt.Sprintf(":%d/%s", h.Grpc.GetPort(), h.Grpc.GetService())}
	case h.GetGrpc() != nil:
		return []string{testGRPC, fmt.Sprintf(":%d", h.Grpc.GetPort())}
	}
	return h.GetTest()
}
