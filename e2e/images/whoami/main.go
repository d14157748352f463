// Command whoami is the lab's test service: it says who answered, at which version, and whom it believes to be talking to.
//
// HTTP and UDP on :80 answer with three lines: host name, version, client address. /health answers 200 until /sick was
// asked for (or the -sick-after time passed), 503 from then on until /well is. On SIGTERM it stops listening, finishes open requests and exits 0.
// /slow?for=2s holds a request open, /bytes?n=1000000 sends so many bytes. `whoami -probe` asks the local /health and exits 0 or 1: the images' HEALTHCHECK.
// `whoami -link eth0 -frame HEX` sends one Ethernet frame as it is, and exits.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

// grace is how long open requests may take after SIGTERM; just below the usual stop grace of 10 s.
const grace = 9 * time.Second

func main() {
	version := flag.String("version", "dev", "version to answer with")
	listen := flag.String("listen", ":80", "address to serve HTTP and UDP on")
	crash := flag.Bool("crash", false, "exit 1 at once")
	sickAfter := flag.Duration("sick-after", 0, "turn unhealthy by itself after this time; 0 is never")
	probe := flag.Bool("probe", false, "ask the whoami on -listen whether it is healthy, and exit")
	link := flag.String("link", "eth0", "interface to send -frame by")
	frame := flag.String("frame", "", "Ethernet frame to send, in hexadecimal, and exit")
	flag.Parse()

	var err error
	switch {
	case *crash:
		err = errors.New("crashing, as asked")
	case *frame != "":
		err = sendFrame(*link, *frame)
	case *probe:
		err = ask(*listen)
	default:
		err = serve(*listen, *version, *sickAfter)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "whoami:", err)
		os.Exit(1)
	}
}

func ask(listen string) error {
	_, port, err := net.SplitHostPort(listen)
	if err != nil {
		return fmt.Errorf("read -listen %q: %w", listen, err)
	}
	client := http.Client{Timeout: 3 * time.Second}
	res, err := client.Get("http://127.0.0.1:" + port + "/health")
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("health says %s", res.Status)
	}
	return nil
}

func serve(listen, version string, sickAfter time.Duration) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("find out my name: %w", err)
	}
	answer := func(client string) string {
		return fmt.Sprintf("host: %s\nversion: %s\nclient: %s\n", host, version, client)
	}

	var sick atomic.Bool
	if sickAfter > 0 {
		time.AfterFunc(sickAfter, func() { sick.Store(true) })
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Printf("%s %s %s\n", r.RemoteAddr, r.Method, r.URL.Path)
		io.WriteString(w, answer(r.RemoteAddr))
	})
	mux.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) {
		if sick.Load() {
			http.Error(w, "sick", http.StatusServiceUnavailable)
			return
		}
		io.WriteString(w, "healthy\n")
	})
	mux.HandleFunc("/sick", func(w http.ResponseWriter, _ *http.Request) {
		sick.Store(true)
		io.WriteString(w, "sick from now on\n")
	})
	mux.HandleFunc("/well", func(w http.ResponseWriter, _ *http.Request) {
		sick.Store(false)
		io.WriteString(w, "well from now on\n")
	})
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		d, err := time.ParseDuration(r.URL.Query().Get("for"))
		if err != nil {
			http.Error(w, "ask for /slow?for=2s", http.StatusBadRequest)
			return
		}
		// The head goes out at once: whoever asked knows that the request is being worked on.
		w.WriteHeader(http.StatusOK)
		http.NewResponseController(w).Flush()
		select {
		case <-time.After(d):
			io.WriteString(w, answer(r.RemoteAddr))
		case <-r.Context().Done():
		}
	})

	mux.HandleFunc("/bytes", func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.ParseInt(r.URL.Query().Get("n"), 10, 64)
		if err != nil || n < 0 {
			http.Error(w, "ask for /bytes?n=1000000", http.StatusBadRequest)
			return
		}
		io.CopyN(w, zeros{}, n)
	})

	udp, err := net.ListenPacket("udp", listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	defer udp.Close()
	go func() {
		buf := make([]byte, 2048)
		for {
			_, from, err := udp.ReadFrom(buf)
			if err != nil {
				return // closed: we are stopping
			}
			udp.WriteTo([]byte(answer(from.String())), from)
		}
	}()

	srv := &http.Server{Addr: listen, Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- srv.ListenAndServe() }()
	fmt.Printf("whoami %s on %s listens on %s\n", version, host, listen)
	select {
	case err := <-failed:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	fmt.Println("asked to stop, finishing open requests")
	end, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	return srv.Shutdown(end)
}

// zeros is an endless reader.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
