package tutorial

import (
	"strings"
	"time"
)

func concepts(g *Guide) {
	g.Say("A **swarm** is a cluster of hosts that run containers together. Nothing has to be installed beside `skep` and containerd: the cluster begins when one host says `skep init` and others say `skep join`.")
	g.Say("A **node** is a host of the cluster. **Manager** nodes take commands, keep the wanted state and hand out work; with several of them one is the leader. **Worker** nodes run the tasks that they are given and report how they are. A manager is a worker too, unless you say otherwise.")
	g.Say("A **service** says what is to run: an image, how often, on which network. Each copy is a **task**, a container on some node. The cluster keeps what is as the service says, whatever happens to containers and hosts.")
}

func found(g *Guide) {
	m1, w1, w2 := g.address("m1"), g.address("w1"), g.address("w2")
	g.Say("On the machine that shall be the first manager. `--advertise-addr` is the address under which the others reach it. (`skep swarm init`, `join`, `join-token` and `leave` are the same commands.)")
	o := g.Run("skep init --advertise-addr " + m1)
	g.Shows(o, "skep join --token", m1+":2377")
	g.joined("m1")
	g.QuietlyRefused("m1", 1, "skep init --advertise-addr "+m1, "already part of")
	g.Say("A manager shows the command that adds a worker, or a manager, at any time:")
	o = g.Run("skep join-token worker")
	g.Shows(o, "skep join --token")
	worker, manager := g.Quietly("m1", "skep join-token -q worker"), g.Quietly("m1", "skep swarm join-token -q manager")
	g.Want(worker != manager && worker != "", "tokens %q and %q", worker, manager)

	g.Say("A token that is wrong opens nothing, and says so:")
	wrong := worker[:len(worker)-4] + "zzzz"
	g.Refused("w1", 1, "skep join --token nonsense "+m1+":2377", "token")
	g.QuietlyRefused("w1", 1, "skep join --token "+wrong+" --advertise-addr "+w1+" "+m1+":2377", "token")
	g.QuietlyRefused("w1", 1, "skep join --token "+worker+" --advertise-addr "+w1+" 10.90.0.77:2377", "10.90.0.77")

	g.Say("On the workers:")
	g.On("w1", "skep join --token "+worker+" "+m1+":2377")
	g.joined("w1")
	g.Say("A node that joins twice is told so:")
	g.Refused("w1", 1, "skep join --token "+worker+" "+m1+":2377", "already part of")

	g.Say("A token that got into the wrong hands is replaced; the old one is worth nothing from then on:")
	rotated := strings.TrimSpace(g.Run("skep join-token --rotate -q worker").Stdout)
	g.Want(rotated != worker, "--rotate gave the same token")
	g.QuietlyRefused("w2", 1, "skep join --token "+worker+" --advertise-addr "+w2+" "+m1+":2377", "token")
	g.On("w2", "skep swarm join --token "+rotated+" "+m1+":2377")
	g.joined("w2")

	g.Say("The nodes of the cluster, seen from a manager:")
	for _, h := range members {
		g.awaitNode(h, "Ready Active", 20*time.Second)
	}
	o = g.Run("skep node ls")
	g.Want(strings.Count(o.Stdout, "Ready") == 3 && strings.Count(o.Stdout, "Leader") == 1, "three nodes and one leader:\n%s", o.Stdout)
	g.awaitNode("m1", "Ready Active Leader", time.Second)
	g.QuietlyRefused("w1", 1, "skep node ls", "manager")

	g.Say("A node leaves, is Down then, and can be taken from the list. The last manager does not leave by accident.")
	g.On("w2", "skep leave")
	g.awaitNode("w2", "Down", 20*time.Second)
	g.Run("skep node rm w2")
	g.Want(!strings.Contains(g.Quietly("m1", "skep node ls"), "w2"), "w2 is listed after node rm")
	g.Refused("m1", 1, "skep leave", "--force")
	g.Say("It comes back as it came:")
	g.On("w2", "skep join --token "+rotated+" "+m1+":2377")
	g.awaitNode("w2", "Ready Active", 20*time.Second)
}
