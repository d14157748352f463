package tutorial

import (
	"fmt"
	"strings"
	"time"

	"skep.dev/e2e/lab"
)

func firstService(g *Guide) {
	g.Say("A service that runs the image `httpd`, a web server:")
	g.Run("skep service create --name web_server httpd")
	g.Say("The services of the cluster. `1/1`: one replica is wanted, and one runs.")
	g.Shows(g.Run("skep service ls"), "web_server", "1/1", "replicated")
	g.Say("Each replica of a service: its node, its state and for how long.")
	g.Run("skep service ps web_server")
	ts := g.tasks("web_server")
	g.Want(len(ts) == 1 && ts[0].Name == "web_server.1" && ts[0].Node != "" && strings.HasPrefix(ts[0].State, "Running"), "service ps: %+v", ts)
	g.Say("It serves, and reaches the world outside. A command in a container can be run from any manager, wherever the container is:")
	g.Shows(g.Run("skep exec web_server.1 curl -s http://127.0.0.1/"), "It works!")
	g.Quietly("m1", "skep exec web_server.1 curl -s --max-time 5 http://"+lab.RegistryAddress+"/v2/")
	g.Say("What the tasks print, from all nodes:")
	g.Until(10*time.Second, "skep service logs web_server 2>&1 | grep 'GET / HTTP'", func(Output) string { return "" })
	g.Want(g.Try("m1", "skep exec web_server.1 sh -c 'exit 7'").Code == 7, "exec does not give the command's exit status")
}

func scale(g *Guide) {
	g.Quietly("m1", "skep service create --name web_server httpd")
	g.Say("More replicas of the service of chapter 3, and fewer again. They spread over the nodes; a node with more to spare takes more.")
	g.Run("skep service scale web_server=5")
	g.Run("skep service ps web_server")
	by := g.running("web_server")
	for _, h := range members {
		g.Want(len(by[h]) >= 1 && len(by[h]) <= 2, "%d of 5 replicas on %s, want them spread: %v", len(by[h]), h, by)
	}
	g.Run("skep service scale web_server=3")
	g.awaitRunning("web_server", 3, 30*time.Second)
	g.awaitContainers(3, 30*time.Second, members...)
	g.Shows(g.Run("skep service ls"), "3/3")

	g.Say("A manager runs tasks as well. If yours shall not, drain it: its tasks go elsewhere.")
	g.Run("skep node update --availability drain m1")
	g.Shows(g.Run("skep node ls"), "Drain")
	g.awaitRunning("web_server", 3, 30*time.Second, "m1")
	g.awaitContainers(0, 30*time.Second, "m1")
	g.awaitNode("m1", "Ready Drain Leader", time.Second)
	g.Say("Active again, it takes new ones:")
	g.Run("skep node update --availability active m1")
	g.Run("skep service scale web_server=6")
	g.Await("m1 takes new tasks", 30*time.Second, func() string {
		if by := g.running("web_server"); len(by["m1"]) == 0 {
			return fmt.Sprint(by)
		}
		return ""
	})
}

func failover(g *Guide) {
	g.Run("skep service create --name web_server --replicas 6 httpd")
	g.awaitRunning("web_server", 6, time.Minute)
	g.Say("A host loses its power. Nobody tells the cluster: it finds out, and runs the lost tasks on other nodes.")
	g.PowerOff("w1")
	took := g.awaitRunning("web_server", 6, 10*time.Second, "w1")
	g.awaitNode("w1", "Down", 10*time.Second)
	g.Run("skep node ls")
	g.Glance("skep service ps web_server")
	g.awaitContainers(6, 30*time.Second, "m1", "w2")
	g.Note("replacements ran %.1f s after the power-off", took.Seconds())
	g.Say("The host comes back, is Ready again, and nothing runs twice. Tasks do not move back by themselves; new ones come to it.")
	g.PowerOn("w1")
	g.awaitNode("w1", "Ready", time.Minute)
	g.awaitContainers(6, time.Minute, members...)
	g.awaitRunning("web_server", 6, 30*time.Second)
	g.Run("skep service scale web_server=9")
	g.Await("the returned host takes tasks", time.Minute, func() string {
		if by := g.running("web_server"); len(by["w1"]) == 0 || count(by) != 9 {
			return fmt.Sprint(by)
		}
		return ""
	})
	g.Run("skep node ls")
}
