package tutorial

import (
	"fmt"
	"strings"
	"time"
)

func publish(g *Guide) {
	g.Quietly("m1", "skep service create --name web_server --replicas 4 --mount type=volume,source=data,target=/data --mount type=tmpfs,target=/scratch --mount type=bind,source=/srv,target=/host httpd")
	g.awaitRunning("web_server", 4, time.Minute)
	g.Say("A service that is removed leaves nothing behind: no container, no network, no mount.")
	g.Run("skep service rm web_server")
	g.Want(g.Quietly("m1", "skep service ls -q") == "", "service ls after rm")
	took := g.awaitNothing()
	g.Note("nothing left %.1f s after rm", took.Seconds())
	g.QuietlyRefused("m1", 1, "skep service ps web_server", "web_server")
	g.Say("Made anew, with two replicas, it can be reached from its own network only. A published port opens it to the world: port 8080 of every node leads to port 80 of a task.")
	g.Run("skep service create --name web_server --replicas=2 httpd")
	g.awaitRunning("web_server", 2, 30*time.Second)
	g.Run("skep service update --publish-add 8080:80 web_server")
	g.Shows(g.Run("skep service ls"), "*:8080->80/tcp")
	g.Shows(g.UntilOn("client", 20*time.Second, "curl -sS http://m1:8080/", func(Output) string { return "" }), "It works!")
	g.Say("Or from the beginning:")
	g.Run("skep service rm web_server")
	g.Run("skep service create --name web_server --publish 8080:80 --replicas=2 httpd")
	g.Shows(g.UntilOn("client", 20*time.Second, "curl -sS http://w2:8080/", func(Output) string { return "" }), "It works!")
	g.Say("A second service cannot have the same port, and is told whose it is:")
	g.Refused("m1", 1, "skep service create --name other --publish 8080:80 httpd", "8080", "already in use", "web_server")
}

func routingMesh(g *Guide) {
	g.Run("skep service create --name web_server --publish 8080:80 --replicas=2 httpd")
	g.Say("Every node answers on the port, also one that runs no replica: the mesh leads each connection to one of the replicas, wherever it is.")
	for _, h := range members {
		g.Shows(g.UntilOn("client", 20*time.Second, "curl -sS http://"+h+":8080/", func(Output) string { return "" }), "It works!")
	}
	g.Say("The replicas take turns, and the server sees the client's own address, not that of a node: its log shows 10.90.0.200.")
	for range 8 {
		g.Quietly("client", "curl -sS --max-time 3 http://w1:8080/")
	}
	g.Await("both replicas log the client's address", 20*time.Second, func() string {
		g.Quietly("client", "curl -sS --max-time 3 http://m1:8080/")
		for _, t := range []string{"web_server.1", "web_server.2"} {
			if out := g.Quietly("m1", "skep service logs --raw web_server | grep -c '^10.90.0.200 ' || true; skep logs web_server | grep -c '"+t+".*10.90.0.200' || true"); strings.Contains("\n"+out+"\n", "\n0\n") {
				return t + ": " + out
			}
		}
		return ""
	})
	g.Glance("skep service logs --raw --tail 3 web_server")

	g.Say("A load balancer in front of the cluster needs to know nothing of the service: it sends each connection to any node. This one is six lines of shell on the client, on port 8000.")
	g.Quietly("client", balancer)
	g.Then(func() { g.Try("client", "kill -- -$(cat /run/balancer.pid)") })
	for range 3 {
		g.Shows(g.UntilOn("client", 10*time.Second, "curl -sS http://127.0.0.1:8000/", func(Output) string { return "" }), "It works!")
	}

	g.Say("A replica that is killed is replaced, and later connections go to those that live.")
	before := g.tasks("web_server")
	g.Run("skep exec web_server.1 sh -c 'kill 1'")
	g.Await("a replacement", time.Minute, func() string {
		if by := g.running("web_server"); count(by) != 2 || len(g.tasks("web_server")) == len(before) {
			return fmt.Sprint(by)
		}
		return ""
	})
	for range 30 {
		g.Quietly("client", "curl -sS --max-time 3 http://w2:8080/")
	}

	g.Say("Docker gives a container behind a published port two interfaces: one on the `ingress` network, for what comes through the mesh, and one on a bridge of its node, to reach the world outside. With `skep` one does both: `eth0` is on the ingress network, which is there on every node, and leads outside. Each overlay network of chapter 8 adds one more.")
	g.Quietly("m1", "skep service create --name util --publish 8090:80 busybox sleep 100000")
	g.Shows(g.Run("skep exec util.1 ip -o -4 addr show eth0"), "inet ")
	g.Shows(g.Run("skep network ls"), "ingress")
	g.Say("The client is such a world outside:")
	g.Shows(g.Run("skep exec util.1 ping -c 1 -W 2 "+g.address("client")), "1 packets received")
}

// balancer forwards each connection to a node drawn at random.
const balancer = `setsid sh -c 'echo $$ >/run/balancer.pid
while :; do
	n=$(shuf -n1 -e m1 w1 w2)
	mkfifo /run/b.$$ 2>/dev/null
	nc -l -p 8000 </run/b.$$ | nc -w 2 $n 8080 >/run/b.$$
done' >/dev/null 2>&1 </dev/null &`

func overlay(g *Guide) {
	g.Say("Services find one another by name when they are on the same overlay network:")
	g.Run("skep network create --driver overlay myapp_net")
	g.Shows(g.Run("skep network ls"), "myapp_net", "overlay")
	g.Run("skep service create --name my_web --replicas=3 --network myapp_net httpd")
	g.Run("skep service create --name util --network myapp_net busybox sleep 100000")
	g.Say("Where `util` runs does not matter, `skep exec` finds it:")
	g.Run("skep service ps util")
	g.Say("The service has one address of its own, its virtual IP, that leads to all replicas:")
	o := g.Until(10*time.Second, "skep exec util.1 ping -c 2 my_web", func(Output) string { return "" })
	g.Shows(o, "2 packets received")
	g.Run("skep exec util.1 nslookup my_web")
	g.Say("The name with `tasks.` before it has the address of each replica:")
	g.Until(20*time.Second, "skep exec util.1 nslookup tasks.my_web", addresses(3))
	g.Run("skep service scale my_web=5")
	g.Until(5*time.Second, "skep exec util.1 nslookup tasks.my_web", addresses(5))
	g.Say("Who is on another network neither finds nor reaches it:")
	g.Quietly("m1", "skep network create --driver overlay other_net")
	g.Quietly("m1", "skep service create --name stranger --network other_net busybox sleep 100000")
	r := g.Try("m1", "skep exec stranger.1 ping -c 1 -W 1 my_web")
	g.show("m1", r, false)
	g.Want(r.Code != 0, "a stranger reaches my_web: %s", r.Stdout)
	vip := g.Quietly("m1", `skep exec util.1 nslookup my_web | awk '/^Name/ {f=1} f && /^Address/ {print $NF}'`)
	g.Want(g.Try("m1", "skep exec stranger.1 timeout 2 wget -q -O - http://"+vip+"/").Code != 0, "a stranger reaches %s", vip)
	g.Say("A network in use stays:")
	g.Refused("m1", 1, "skep network rm myapp_net", "myapp_net", "in use", "my_web")
}

// addresses wants so many in the answer of nslookup, the server's own not counted.
func addresses(n int) func(Output) string {
	return func(o Output) string {
		_, answers, _ := strings.Cut(o.Stdout, "Name:")
		if got := strings.Count(answers, "Address"); got != n {
			return fmt.Sprintf("%d addresses: %s", got, o.Stdout)
		}
		return ""
	}
}
