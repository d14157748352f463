package probe

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	grpchealth "google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"skep.dev/libs/leaktest"
)

// A program in a network of its own: this binary with serverMark set.
const (
	serverMark         = "SKEP_PROBE_TEST_SERVER"
	httpPort, grpcPort = 8080, 8081
)

func TestMain(m *testing.M) {
	if os.Getenv(serverMark) != "" {
		if err := serve(); err != nil {
			fmt.Println(err)
		}
		os.Exit(1)
	}
	leaktest.Main(m)
}

func serve() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	var req struct {
		name  [16]byte
		flags uint16
		_     [22]byte
	}
	copy(req.name[:], "lo")
	req.flags = unix.IFF_UP
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFFLAGS, uintptr(unsafe.Pointer(&req))); errno != 0 {
		return errno
	}
	g, err := net.Listen("tcp", fmt.Sprint(":", grpcPort))
	if err != nil {
		return err
	}
	srv := grpc.NewServer()
	healthpb.RegisterHealthServer(srv, grpchealth.NewServer())
	go func() { _ = srv.Serve(g) }()
	h, err := net.Listen("tcp", fmt.Sprint(":", httpPort))
	if err != nil {
		return err
	}
	fmt.Println("ready")
	return http.Serve(h, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "fine") }))
}

// elsewhere is the program's network.
func elsewhere(b *testing.B) *network {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), serverMark+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	runtime.LockOSThread() // its death signal is tied to this thread
	if err := cmd.Start(); err != nil {
		b.Skipf("a network namespace needs root: %v", err)
	}
	b.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait(); runtime.UnlockOSThread() })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		b.Fatalf("%q %v", line, err)
	}
	h, err := openHome()
	if err != nil {
		b.Fatal(err)
	}
	n := h.enter(Target{Pid: uint32(cmd.Process.Pid)})
	b.Cleanup(func() { n.close(); _ = h.close() })
	return n
}

func cpu() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkNetworkProbe measures what one probe costs the agent, and what share of two cores 200 tasks probed every 10 s
// take by that.
func BenchmarkNetworkProbe(b *testing.B) {
	for _, x := range []struct {
		name string
		ask  func(context.Context, *network) error
	}{
		{"tcp", func(ctx context.Context, n *network) error { _, err := n.tcp(ctx, httpPort); return err }},
		{"http", func(ctx context.Context, n *network) error { _, err := n.http(ctx, httpPort, "/"); return err }},
		{"grpc", func(ctx context.Context, n *network) error { _, err := n.grpc(ctx, grpcPort, ""); return err }},
	} {
		b.Run(x.name, func(b *testing.B) {
			n := elsewhere(b)
			began := cpu()
			for b.Loop() {
				ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
				if err := x.ask(ctx, n); err != nil {
					b.Fatal(err)
				}
				cancel()
			}
			each := float64((cpu() - began).Microseconds()) / float64(b.N)
			b.ReportMetric(each, "cpu-µs/op")
			b.ReportMetric(each*20/2e6*100, "%-of-2-cores")
		})
	}
}
