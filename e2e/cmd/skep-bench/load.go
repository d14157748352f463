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
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// tool is what the lab's hosts run of this program: the makers of load, in the network namespace they are started in.
//
//	skep-bench conns -c 32 -for 3s URL     new connections a second, a request each
//	skep-bench hammer -c 8 [-rate 500] -until FILE URL,URL,…   asks until the file is there: how often, and how often in vain
//	skep-bench bulk -n BYTES URL           megabytes a second of one response
//	skep-bench queries -c 16 -for 3s NAME  answers of 127.0.0.11 a second
//	skep-bench seen -n COUNT NAME          unix ms at which NAME has so many addresses at 127.0.0.11
func tool(ctx context.Context, args []string, out io.Writer) (bool, error) {
	if len(args) == 0 {
		return false, nil
	}
	fs := flag.NewFlagSet("skep-bench "+args[0], flag.ExitOnError)
	workers := fs.Int("c", 32, "how many at a time")
	span := fs.Duration("for", 3*time.Second, "how long")
	n := fs.Int64("n", 1, "how many bytes or addresses")
	rate := fs.Int("rate", 0, "requests a second of all together, 0 = a pause after each")
	until := fs.String("until", "", "the file that ends it")
	var run func(target string) error
	switch args[0] {
	case "conns":
		run = func(url string) error { return conns(ctx, url, *workers, *span, out) }
	case "hammer":
		run = func(urls string) error { return hammer(ctx, strings.Split(urls, ","), *workers, *rate, *until, out) }
	case "bulk":
		run = func(url string) error { return bulk(ctx, fmt.Sprintf("%s?n=%d", url, *n), out) }
	case "queries":
		run = func(name string) error { return queries(ctx, name, *workers, *span, out) }
	case "seen":
		run = func(name string) error { return seen(ctx, name, int(*n), out) }
	default:
		return false, nil
	}
	if err := fs.Parse(args[1:]); err != nil || fs.NArg() != 1 {
		return true, fmt.Errorf("%s: one target is needed", args[0])
	}
	return true, run(fs.Arg(0))
}

// perSecond lets workers ask again and again for a time, each with an asker of its own, and prints how often in a second
// that went well. More than one failure in a hundred is no measurement.
func perSecond(ctx context.Context, what string, workers int, span time.Duration, out io.Writer, asker func() (ask func() error, end func() error, err error)) error {
	ctx, cancel := context.WithTimeout(ctx, span)
	defer cancel()
	var done, failed atomic.Int64
	began := time.Now()
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			ask, end, err := asker()
			if err != nil {
				failed.Add(1)
				return
			}
			defer func() { _ = end() }()
			for ctx.Err() == nil {
				if err := ask(); err != nil {
					failed.Add(1)
				} else {
					done.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if f := failed.Load(); f > done.Load()/100 {
		return fmt.Errorf("%d of %d %s failed", f, f+done.Load(), what)
	}
	_, err := fmt.Fprintf(out, "%.0f\n", float64(done.Load())/time.Since(began).Seconds())
	return err
}

// get asks once, on a new connection, and reads the answer to its end.
func get(c *http.Client, url string) error {
	res, err := c.Get(url)
	if err == nil {
		_, err = io.Copy(io.Discard, res.Body)
		res.Body.Close()
	}
	return err
}

func newClient() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: quickClose}, Timeout: 5 * time.Second}
}

func conns(ctx context.Context, url string, workers int, span time.Duration, out io.Writer) error {
	return perSecond(ctx, "requests to "+url, workers, span, out, func() (func() error, func() error, error) {
		c := newClient()
		return func() error { return get(c, url) }, func() error { return nil }, nil
	})
}

// hammer makes a new connection for each request, to the URLs in turn, and prints "ASKED FAILED" and the first failures.
func hammer(ctx context.Context, urls []string, workers, rate int, until string, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	go func() {
		for ctx.Err() == nil {
			if _, err := os.Stat(until); err == nil {
				cancel()
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	pause := func(time.Time) time.Duration { return 10 * time.Millisecond } // this machine is every host at once
	if rate > 0 {
		every := time.Second * time.Duration(workers) / time.Duration(rate)
		pause = func(began time.Time) time.Duration { return every - time.Since(began) }
	}
	var asked, failed atomic.Int64
	var mu sync.Mutex
	var first []string
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			c := newClient()
			for n := w; ctx.Err() == nil; n++ {
				began := time.Now()
				err := get(c, urls[n%len(urls)])
				asked.Add(1)
				if err != nil {
					failed.Add(1)
					mu.Lock()
					if len(first) < 5 {
						first = append(first, fmt.Sprintf("%s after %s: %v", began.Format("15:04:05.000"), time.Since(began).Round(time.Millisecond), err))
					}
					mu.Unlock()
				}
				time.Sleep(pause(began))
			}
		})
	}
	wg.Wait()
	_, err := fmt.Fprintf(out, "%d %d\n%s\n", asked.Load(), failed.Load(), strings.Join(first, "\n"))
	return err
}

// quickClose resets connections at their end: their ports are free at once, so that a long run is not slowed by those
// in TIME_WAIT.
func quickClose(ctx context.Context, network, addr string) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, network, addr)
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	return c, err
}

func bulk(ctx context.Context, url string, out io.Writer) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	began := time.Now()
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	n, err := io.Copy(io.Discard, res.Body)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%.0f\n", float64(n)/1e6/time.Since(began).Seconds())
	return err
}

const resolver = "127.0.0.11:53"

func queries(ctx context.Context, name string, workers int, span time.Duration, out io.Writer) error {
	return perSecond(ctx, "questions for "+name, workers, span, out, func() (func() error, func() error, error) {
		conn, err := dns.Dial("udp", resolver)
		if err != nil {
			return nil, nil, err
		}
		q := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA)
		return func() error {
			q.Id = dns.Id()
			_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
			if err := conn.WriteMsg(q); err != nil {
				return err
			}
			r, err := conn.ReadMsg()
			if err == nil && r.Rcode != dns.RcodeSuccess {
				err = errors.New(dns.RcodeToString[r.Rcode])
			}
			return err
		}, conn.Close, nil
	})
}

func seen(ctx context.Context, name string, n int, out io.Writer) error {
	c := dns.Client{Timeout: time.Second, Net: "tcp"}
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA)
	for end := time.Now().Add(time.Minute); time.Now().Before(end) && ctx.Err() == nil; {
		r, _, err := c.ExchangeContext(ctx, q, resolver)
		if err == nil && len(r.Answer) == n {
			_, err := fmt.Fprintln(out, time.Now().UnixMilli())
			return err
		}
		time.Sleep(2 * time.Millisecond)
	}
	return fmt.Errorf("%s has not got %d addresses in a minute", name, n)
}
