package tutorial

import (
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"
)

func updates(g *Guide) {
	g.Say("A rolling update takes one replica after the other, so that some always serve. When one fails, the update pauses and the rest go on as they were.")
	g.Run("skep service create --name my_web --replicas=3 --publish 8080:80 --update-monitor 1s httpd:2.2.31")
	g.UntilOn("client", 20*time.Second, "curl -sS http://m1:8080/", func(o Output) string {
		if !strings.Contains(o.Stdout, "httpd:2.2.31") {
			return o.Stdout
		}
		return ""
	})
	end := g.askOften("http://" + g.address("w1") + ":8080/")
	g.Run("skep service update --image httpd:2.2.32 my_web")
	g.Shows(g.Glance("skep service ps my_web"), "httpd:2.2.32", "httpd:2.2.31", "Shutdown")
	g.versions(map[string]int{"httpd:2.2.32": 3})

	g.Say("More replicas, two at a time, with a pause between (the settings stay with the service):")
	g.Run("skep service update --replicas 6 --update-parallelism 2 --update-delay 1m30s my_web")
	g.awaitRunning("my_web", 6, 30*time.Second)
	g.Shows(g.Run("skep service inspect --pretty my_web"), "Parallelism:", "1m30s", "Replicas:")
	g.Shows(Output{Result: g.Try("m1", "skep service inspect my_web").Result}, `"Parallelism": 2`)

	g.Say("A version that does not start: the update pauses after the first replicas, the others go on with 2.2.32, and the screen says why.")
	g.Refused("m1", 1, "skep service update --update-monitor 5s --args /bin/nothing my_web", "paused")
	g.Shows(g.Glance("skep service inspect --pretty my_web | grep -A4 -i 'update *status'"), "paused")
	by := g.images("my_web")
	g.Want(by["httpd:2.2.32"] >= 4, "fewer than 4 of 6 go on after a failed update of two at a time: %v", by)
	g.Say("Back to what was before. Not only one step: `skep service history` lists the revisions that are kept, and `rollback --to` goes to any of them. How many replicas there are is no part of that: six stay six.")
	g.Run("skep service update --rollback my_web")
	g.awaitRunning("my_web", 6, 20*time.Second)
	g.Glance("skep service history my_web")
	g.Run("skep service update --update-delay 0s my_web")
	g.Run("skep service rollback --to 1 my_web")
	g.versions(map[string]int{"httpd:2.2.31": 6})
	asked, failed, first := end()
	g.Want(asked > 0 && failed == 0, "%d of %d requests failed, such as: %v", failed, asked, first)
	g.Say("All the time a client asked for the page over and over; none of its requests failed.")
}

// images are how many tasks run of which image.
func (g *Guide) images(service string) map[string]int {
	by := map[string]int{}
	for _, ts := range g.running(service) {
		for _, t := range ts {
			by[t.Image]++
		}
	}
	return by
}

func (g *Guide) versions(want map[string]int) {
	g.Await(fmt.Sprint("tasks ", want), 30*time.Second, func() string {
		if got := g.images("my_web"); !maps.Equal(got, want) {
			return fmt.Sprint(got)
		}
		return ""
	})
}

// askOften asks for a page from the client, a connection each time, until the function it returns is called, which says how often
// that was, how often it failed, and how the first time.
func (g *Guide) askOften(url string) (end func() (asked, failed int, first error)) {
	client := g.browser()
	stop, ended := make(chan struct{}), make(chan struct{})
	var asked, failed int
	var first error
	go func() {
		defer close(ended)
		for {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
			}
			asked++
			if _, err := client.get(url); err != nil {
				if failed++; first == nil {
					first = err
				}
			}
		}
	}()
	halt := sync.OnceFunc(func() { close(stop); <-ended })
	g.Then(halt)
	return func() (int, int, error) { halt(); return asked, failed, first }
}
