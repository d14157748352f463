package tutorial

import (
	"fmt"
	"strings"
	"time"
)

const collect = "skep service create --mode global --name logspout \\\n    --mount type=bind,source=/var/lib/skep/agent/tasks,destination=/tasks,readonly \\\n    gliderlabs/logspout"

func global(g *Guide) {
	g.Say("A service is *replicated* unless you say otherwise: so many tasks, wherever there is room. A *global* service has exactly one task on every node: for daemons, such as one that collects the logs of all containers of its node.")
	g.Say("Docker's tutorial gives the collector Docker's socket. A node of skep has none, and the task says so:")
	g.Run("skep service create -d --mode global --name no_socket --mount type=bind,source=/var/run/docker.sock,destination=/var/run/docker.sock gliderlabs/logspout")
	g.Await("a reason", 20*time.Second, func() string {
		for _, t := range g.tasks("no_socket") {
			if strings.Contains(t.Error, "/var/run/docker.sock") {
				return ""
			}
		}
		return fmt.Sprint(g.tasks("no_socket"))
	})
	g.Glance("skep service ps --filter node=w1 --no-trunc --format '{{.Name}}: {{.Error}}' no_socket | head -1")
	g.Run("skep service rm no_socket")
	g.Say("The agent of a node keeps the output of its tasks in files, and a folder can be mounted. So the collector reads that. It can read what every container of the node prints and how it was set up, and nothing more; with Docker's socket it could also start containers.")
	g.Run(collect)
	each := func() string {
		by := g.running("logspout")
		for _, h := range members {
			if len(by[h]) != 1 {
				return fmt.Sprintf("%d on %s", len(by[h]), h)
			}
		}
		return ""
	}
	g.Await("one task on every node", 30*time.Second, each)
	g.Run("skep service ps logspout")
	g.Shows(g.Run("skep service inspect --pretty logspout"), "Global", "/var/lib/skep/agent/tasks")
	for _, h := range members {
		g.awaitContainers(1, 20*time.Second, h)
	}

	g.Say("What a container of the node prints, its collector has:")
	g.Run("skep service create --name hello --constraint node.hostname==w1 busybox sh -c 'echo hello from a container; sleep 100000'")
	const read = "skep exec $(skep service ps -q --filter node=w1 logspout) wget -q -O - http://127.0.0.1/logs"
	g.Await("the collector of w1 has the line", 20*time.Second, func() string {
		out := g.Quietly("m1", read)
		if !strings.Contains(out, "|hello from a container") {
			return out
		}
		return ""
	})
	g.Glance(read)

	g.Say("A node that joins later gets its task too:")
	h, err := g.Lab.Add(g.ctx)
	if err == nil {
		g.Then(func() { g.remove(h.Name) })
		g.On(h.Name, "skep join --token "+g.Quietly("m1", "skep join-token -q worker")+" "+g.address("m1")+":2377")
		h.Joined = true
	}
	g.Want(err == nil, "add a host: %v", err)
	g.Await("one task on the new node", 30*time.Second, func() string {
		if by := g.running("logspout"); len(by[h.Name]) != 1 || count(by) != 4 {
			return fmt.Sprint(by)
		}
		return ""
	})
	g.Run("skep service ps logspout")
}

// remove takes a host out of the cluster.
func (g *Guide) remove(host string) {
	g.Try(host, "skep leave")
	g.awaitNode(host, "Down", 30*time.Second)
	g.Quietly("m1", "skep node rm "+host)
}

func labels(g *Guide) {
	g.Say("Labels say what a node is good for, in your own words. Let `w1` be for tests and `w2` for production:")
	g.Run("skep node update --label-add env=test w1")
	g.Run("skep node update --label-add env=prod w2")
	g.Say("A service for the test environment:")
	g.Run("skep service create \\\n    --constraint node.labels.env==test \\\n    --replicas 3 \\\n    --name my_web \\\n    --publish 8080:80 \\\n    httpd")
	all := func(node string, n int) {
		g.Await(fmt.Sprintf("all %d on %s", n, node), time.Minute, func() string {
			if by := g.running("my_web"); len(by[node]) != n || count(by) != n {
				return g.Quietly("m1", "skep service ps my_web")
			}
			return ""
		})
	}
	all("w1", 3)
	g.Run("skep service ps my_web")
	g.Say("It moves to production, in one command or in two; between the two it may run anywhere.")
	g.Run("skep service update --constraint-rm node.labels.env==test my_web")
	g.Run("skep service update --constraint-add node.labels.env==prod my_web")
	all("w2", 3)
	g.Glance("skep service ps --filter desired-state=running my_web")
	g.Say("Labels go on deciding: a node that loses its label loses the tasks.")
	g.Run("skep node update --label-rm env w2")
	g.Run("skep node update --label-add env=prod w1")
	all("w1", 3)
	g.awaitContainers(0, 30*time.Second, "w2")
	g.Say("A constraint and the global mode together: one task on every node that has the label. Here logs are collected in production only.")
	g.Run(strings.Replace(collect, "--mode global", "--mode global --constraint node.labels.env==prod", 1))
	g.Await("one collector, on w1", 20*time.Second, func() string {
		if by := g.running("logspout"); len(by["w1"]) != 1 || count(by) != 1 {
			return fmt.Sprint(by)
		}
		return ""
	})
	g.Run("skep service ps logspout")
}
