package tutorial

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

const (
	fence   = "/var/lib/skep/fence" // the fencing program of the tutorial's managers
	pageOne = "It works!"
	pageTwo = "Kept on a volume"
)

func storage(g *Guide) {
	g.Say("A container's files go with it. What shall stay is on a **volume**. A local volume is on one node; a volume of a plug-in is on storage that every node reaches, so it follows its tasks. Here each node runs a plug-in named `rexray`, in the place of REX-Ray of Docker's tutorial: like a cloud's disks, a volume of it is attached to one node at a time.")
	g.Await("every node tells of its plug-in", 30*time.Second, func() string {
		for _, h := range members {
			if out := g.Quietly("m1", "skep node inspect --format '{{json .Description.Engine.Plugins}}' "+h); !strings.Contains(out, "rexray") {
				return h + ": " + out
			}
		}
		return ""
	})
	g.Shows(g.Run("skep node inspect --format '{{range .Description.Engine.Plugins}}{{.Type}}: {{.Name}}{{println}}{{end}}' w1"), "Volume: rexray")
	g.Run("skep service create --name my_web \\\n    --publish 8080:80 \\\n    --mount \"type=volume,volume-driver=rexray,source=web_data,target=/usr/local/apache2/htdocs\" \\\n    httpd")
	g.Run("skep service ps my_web")
	g.Shows(g.Glance("skep service inspect --pretty my_web"), "web_data", "/usr/local/apache2/htdocs")
	g.Say("The new volume began with what the image has in that folder:")
	g.page(pageOne)
	g.Shows(g.Run("skep volume ls"), "rexray", "web_data")

	g.Say("### The data stays")
	g.Say("Scaled up, both replicas use the same volume; they run on the node that has it.")
	g.Run("skep service update --replicas=2 my_web")
	by := g.running("my_web")
	g.Want(len(by) == 1 && count(by) == 2, "one node can have the volume, and the tasks are on %v", by)
	g.Say("Its content is changed through one of them, and both serve it:")
	g.Run("skep exec my_web.1 sh -c 'echo \"" + pageTwo + "\" > /usr/local/apache2/htdocs/index.html'")
	for range 6 {
		g.Want(g.Quietly("client", "curl -sS --max-time 3 http://w1:8080/") == pageTwo, "a replica serves an old page")
	}
	g.page(pageTwo)

	g.Say("### The host dies")
	g.Say("The cluster cannot see whether a node that is silent is dead, or cut off and still writing. A disk with two writers is a broken disk, so the volume stays with the silent node until it is certain that it writes no more: an operator says so (`skep node fence NODE`), or a program does that cuts the node off. This one takes its volumes away:")
	g.Quietly("m1", g.fenceProgram())
	g.Run("skep swarm update --fence-cmd " + fence)
	g.Then(func() { g.Quietly("m1", "skep swarm update --fence-cmd ''") })
	victim := g.moveTo("w1", "my_web")
	g.PowerOff(victim)
	began := time.Now()
	g.awaitRunning("my_web", 2, 20*time.Second, victim)
	took := time.Since(began)
	g.Note("both replicas ran with the volume %.1f s after the power-off", took.Seconds())
	g.Glance("skep service ps my_web")
	g.page(pageTwo)
	g.Want(took < failoverLimit, "the failover took %s", took)
	g.Say("The data is there. The dead node, switched on again, takes new work and none of the old:")
	g.PowerOn(victim)
	g.awaitNode(victim, "Ready", time.Minute)
	g.Run("skep service scale my_web=1")
	g.page(pageTwo)

	g.Say("### Other mounts")
	g.Say("A folder of the host, memory, a local volume, and the same read-only:")
	g.Quietly("m1", "mkdir -p /srv/shared && echo from the host > /srv/shared/hello")
	g.Run("skep service create --name mounts --constraint node.hostname==m1 \\\n    --mount type=bind,source=/srv/shared,target=/host,readonly \\\n    --mount type=tmpfs,target=/scratch,tmpfs-size=1m \\\n    --mount type=volume,source=notes,target=/notes \\\n    busybox sleep 100000")
	g.Shows(g.Run("skep exec mounts.1 cat /host/hello"), "from the host")
	g.Refused("m1", 1, "skep exec mounts.1 touch /host/new", "Read-only file system")
	g.Shows(g.Run("skep exec mounts.1 sh -c 'df /scratch | tail -1'"), "tmpfs", "/scratch")
	g.Run("skep exec mounts.1 sh -c 'echo keep this > /notes/one'")
	g.Run("skep service rm mounts my_web")
	g.awaitNothing()
	g.Say("The services are gone, the volumes are not: data goes when somebody says so.")
	g.Shows(g.Run("skep volume ls"), "notes", "web_data")
	g.Until(20*time.Second, "skep volume rm notes web_data", func(Output) string { return "" })
}

// fenceProgram is a script that puts a program there that takes a host's volumes away, as the storage of a cloud can.
func (g *Guide) fenceProgram() string {
	return fmt.Sprintf("printf '#!/bin/sh\\nexec %s -store %s force-detach \"$1\"\\n' > %s && chmod +x %[3]s", filepath.Join(g.Lab.Bin, "skep-volumed"), g.Lab.VolumeStore(), fence)
}

// failoverLimit is how long a service with a volume may be away when its host dies and there is a fencing program.
const failoverLimit = 8 * time.Second

// page waits until the client sees a page at port 8080 of m1.
func (g *Guide) page(want string) {
	g.UntilOn("client", 20*time.Second, "curl -sS --max-time 3 http://m1:8080/", func(o Output) string {
		if !strings.Contains(o.Stdout, want) {
			return o.Stdout + o.Stderr
		}
		return ""
	})
}

// moveTo brings a service that runs on one node to another, if it is not there already, and returns that node. Its old node takes new
// tasks again.
func (g *Guide) moveTo(node, service string) string {
	n := count(g.running(service))
	for _, h := range without(members, node) {
		g.Quietly("m1", "skep node update --availability drain "+h)
	}
	g.awaitRunning(service, n, time.Minute, without(members, node)...)
	for _, h := range without(members, node) {
		g.Quietly("m1", "skep node update --availability active "+h)
	}
	return node
}
