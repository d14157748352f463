// logspout collects the logs of its node's containers and serves them, as gliderlabs/logspout does, on port 80 as /logs: a line each, the
// container's name, a bar, the text. It reads the files of the node's agent, which the node mounts at /tasks (-tasks names another
// folder): read-only is enough. It keeps the newest lines only.
package main

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// keep is how many lines are kept.
const keep = 10_000

func main() {
	tasks := flag.String("tasks", "/tasks", "folder with the tasks of the node's agent")
	listen := flag.String("listen", ":80", "address to serve on")
	flag.Parse()
	if _, err := os.ReadDir(*tasks); err != nil {
		fmt.Fprintf(os.Stderr, "logspout: %v: mount the agent's tasks there: --mount type=bind,source=/var/lib/skep/agent/tasks,destination=%s,readonly\n", err, *tasks)
		os.Exit(1)
	}
	var kept lines
	go func() {
		self, _ := os.Hostname()
		c := collector{dir: *tasks, self: self, at: map[string]int64{}, hear: kept.add}
		for {
			c.collect()
			time.Sleep(500 * time.Millisecond)
		}
	}()
	http.HandleFunc("GET /logs", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, kept.String()) })
	if err := http.ListenAndServe(*listen, nil); err != nil {
		fmt.Fprintln(os.Stderr, "logspout:", err)
		os.Exit(1)
	}
}

// lines are the newest lines.
type lines struct {
	mu  sync.Mutex
	all []string
}

func (l *lines) add(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all = append(l.all, line); len(l.all) > keep {
		l.all = append([]string(nil), l.all[keep/2:]...)
	}
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.all, "")
}
