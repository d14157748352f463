package tutorial

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
	"skep.dev/libs/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// document is what make tutorial writes.
const document = "../../docs/tutorial.md"

// Every chapter on one lab of three hosts: each command works, what is to be seen is seen, and docs/tutorial.md says the same.
func TestTutorial(t *testing.T) {
	doc, err := os.ReadFile(document)
	if err != nil {
		t.Fatalf("%v: `make tutorial` writes it", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 12*time.Minute)
	defer cancel()
	o := Options("t-tutorial")
	if err := lab.Remove(o.Name); err != nil { // what a run that was killed left
		t.Fatal(err)
	}
	l, err := lab.Up(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(); err != nil {
			t.Errorf("take the lab down: %v", err)
		}
		if left, err := lab.Leftovers(o.Name); err != nil || len(left) > 0 {
			t.Errorf("left on the machine: %v %v", left, err)
		}
	})
	for _, ch := range Chapters {
		t.Run(fmt.Sprintf("chapter-%d", ch.Number), func(t *testing.T) {
			seen, err := ch.Walk(ctx, l, t.Output())
			if err != nil {
				t.Error(err)
				logs(t, l)
			} else if diff := Compare(string(doc), seen); diff != "" {
				t.Errorf("docs/tutorial.md is not what this chapter saw; if the chapter is right, run `make tutorial`: %s", diff)
			}
		})
	}
	logs(t, l)
}

// logs fails on what no daemon may ever say, and shows the last of each log when the test failed.
func logs(t *testing.T, l *lab.Lab) {
	for _, h := range l.Hosts {
		files, err := l.LogFiles(h.Name)
		if err != nil {
			t.Error(err)
		}
		for name, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				continue // never started there
			}
			for _, bad := range []string{"panic:", "DATA RACE", "fatal error:"} {
				if at := strings.Index(string(b), bad); at >= 0 {
					t.Errorf("%s of %s has %q:\n%s", name, h.Name, bad, b[at:min(len(b), at+4000)])
				}
			}
			if t.Failed() && name == "skep" {
				lines := strings.Split(strings.TrimSpace(string(b)), "\n")
				t.Logf("the last of %s on %s:\n%s", name, h.Name, strings.Join(lines[max(0, len(lines)-15):], "\n"))
			}
		}
	}
}
