package fencing

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func script(t *testing.T, text string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "fence")
	if err := os.WriteFile(p, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestRun(t *testing.T) {
	t.Setenv("SECRET", "x")
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, path, node, out, err string
	}{
		{"arguments and environment", script(t, `echo "$# $1 $SKEP_NODE_ID $SKEP_NODE_ADDR [$SECRET] $PWD"`), "w1; id", "1 w1; id n1 10.0.0.1 [] /", ""},
		{"status", script(t, "echo no power switch >&2; exit 3"), "w1", "no power switch", "exit status 3"},
		{"killed", script(t, "kill -9 $$"), "w1", "", "signal: killed"},
		{"much output", script(t, "head -c 100000 /dev/zero | tr '\\0' a; echo; echo end"), "w1", "end", ""},
		{"not there", "/nowhere/fence", "w1", "", "there is no such program on this manager"},
		{"not executable", plain, "w1", "", "it may not be run on this manager: is it executable?"},
		{"no path", "fence", "w1", "", `run "fence": it is no absolute path`},
		{"an option for a name", script(t, "exit 0"), "--all", "", "the node's name \"--all\" cannot be an argument"},
		{"no name", script(t, "exit 0"), "", "", "cannot be an argument"},
		{"hangs", script(t, "sleep 1000"), "w1", "", "it did not end within 200ms"},
	} {
		t.Run(c.name, func(t *testing.T) {
			limit := Timeout
			if c.name == "hangs" {
				limit = 200 * time.Millisecond
			}
			out, err := Command{Path: c.path, Name: c.node, NodeID: "n1", Addr: "10.0.0.1", Timeout: limit}.Run(context.Background())
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("error %v, want %q", err, c.err)
			}
			if c.name == "much output" && len(out) > outputLimit/2 && len(out) <= 2*outputLimit && strings.HasSuffix(out, "end") {
				out = "end"
			}
			if strings.TrimSpace(out) != c.out {
				t.Errorf("output %.80q of %d bytes, want %.80q", out, len(out), c.out)
			}
		})
	}
}

// What the program started ends with it, whether it ended or was stopped.
func TestChildrenEndToo(t *testing.T) {
	for _, stays := range []string{"", "wait"} {
		pid := filepath.Join(t.TempDir(), "pid")
		path := script(t, "sleep 1000 & echo $! > "+pid+".new; mv "+pid+".new "+pid+"; "+stays)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() {
			_, err := Command{Path: path, Name: "w1"}.Run(ctx)
			done <- err
		}()
		var child int
		await(t, "the child to start", func() bool {
			b, err := os.ReadFile(pid)
			child, _ = strconv.Atoi(strings.TrimSpace(string(b)))
			return err == nil
		})
		if stays != "" {
			cancel()
		}
		if err := <-done; (err == nil) != (stays == "") {
			t.Errorf("%q: %v", stays, err)
		}
		cancel()
		await(t, "the child to end", func() bool {
			if syscall.Kill(child, 0) != nil {
				return true
			}
			b, err := os.ReadFile("/proc/" + strconv.Itoa(child) + "/stat")
			return err != nil || strings.Contains(string(b), ") Z ")
		})
	}
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited for %s", what)
		}
	}
}
