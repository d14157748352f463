package tutorial

import (
	_ "embed"
	"fmt"
	"strings"
	"time"
)

//go:embed wordpress.yml
var stackFile string

// frontPageLimit is how long WordPress from one file may take until its front page is there, the images being on the nodes.
const frontPageLimit = 25 * time.Second

func stacks(g *Guide) {
	g.Say("The blog of chapter 14 took two secrets, a network and two long commands. A **stack** says all of it in one file, which can be kept, compared and deployed again. This is `wordpress.yml`:")
	g.Quietly("m1", "mkdir -p ~/blog && cat > ~/blog/wordpress.yml <<'END'\n"+stackFile+"END")
	g.add(Block{Kind: Paragraph, Text: "```yaml\n" + strings.TrimSpace(stackFile) + "\n```"})
	g.Say("It uses the volume plug-in of chapter 10 for the database. The passwords are in files beside it:")
	g.Run("cd ~/blog && openssl rand -base64 20 > db_root_password.txt && openssl rand -base64 20 > db_password.txt")
	g.Quietly("m1", fmt.Sprintf("skep node update --availability drain m1 && %s && skep swarm update --fence-cmd %s", g.fenceProgram(), fence))
	g.Then(func() { g.Quietly("m1", "skep swarm update --fence-cmd ''") })
	for _, image := range []string{"mysql:latest", "wordpress:latest"} { // the limit below is for nodes that have them
		for _, h := range []string{"w1", "w2"} {
			g.Quietly("m1", fmt.Sprintf("skep image pull --node %s %s", h, image))
		}
	}
	// The limit is for a clean cluster: a node that still has the network of the chapter before waits with a new one of the same VXLAN id.
	g.Await("no network of an earlier chapter", time.Minute, func() (left string) {
		for _, h := range members {
			left += g.Quietly(h, "ls /run/skep/overlays 2>/dev/null || true")
		}
		return left
	})
	began := time.Now()
	g.Run("cd ~/blog && skep stack deploy -c wordpress.yml wp")
	b := blog{g.browser(), "http://m1:30000"}
	g.Await("WordPress's first page", time.Minute, func() string { _, err := b.get(b.address + "/wp-admin/install.php"); return word(err) })
	took := time.Since(began)
	g.Note("the first page was there %.1f s after the deploy began", took.Seconds())
	g.Want(took < frontPageLimit, "the first page took %s", took)
	post := g.firstPost()
	g.blogStands(post)

	g.Shows(g.Run("skep stack ls"), "wp", "2")
	g.Shows(g.Run("skep stack services wp"), "wp_db", "wp_wordpress", "1/1", "2/2")
	g.Shows(g.Run("skep stack ps wp"), "wp_db.1", "wp_wordpress.1", "wp_wordpress.2")

	g.Say("### Change the file")
	g.Say("The same file again changes nothing:")
	before := g.stackTasks()
	g.Run("cd ~/blog && skep stack deploy -c wordpress.yml wp")
	g.Want(g.stackTasks() == before, "the unchanged deploy touched tasks:\n%s\n%s", before, g.stackTasks())
	g.Say("One more replica of WordPress. Deployed again, only that changes: the database is not touched.")
	db := g.tasks("wp_db")[0].ID
	g.Run("cd ~/blog && sed -i 's/replicas: 2/replicas: 3/' wordpress.yml && skep stack deploy -c wordpress.yml wp")
	g.Shows(g.Run("skep stack services wp"), "3/3", "1/1")
	g.Want(g.tasks("wp_db")[0].ID == db && len(g.tasks("wp_db")) == 1, "the database was touched")
	g.blogStands(post)

	g.Say("### The host of the database dies")
	victim := g.tasks("wp_db")[0].Node
	g.PowerOff(victim)
	away := g.Await("the blog with its posts", 40*time.Second, func() string { return g.blogThrough(post, without(members, victim)...) })
	g.Note("the blog was back %.1f s after the power-off", away.Seconds())
	g.Say("The volume went to the other worker, the database after it, and the post is there.")
	g.PowerOn(victim)
	g.awaitNode(victim, "Ready", time.Minute)

	g.Say("### All of it goes")
	g.Run("skep stack rm wp")
	g.awaitNothing()
	for _, line := range []string{"skep service ls -q", "skep secret ls -q", "skep config ls -q", "skep stack ls -q", "skep network ls -q --filter label=com.docker.stack.namespace=wp"} {
		g.Want(g.Quietly("m1", line) == "", "%s: %s", line, g.Quietly("m1", line))
	}
	g.Say("Only the volume stays, with the data:")
	g.Shows(g.Run("skep volume ls"), "wp_db_data")
	g.Until(20*time.Second, "skep volume rm wp_db_data", func(Output) string { return "" })
}

// stackTasks are the tasks of the stack that are meant to run.
func (g *Guide) stackTasks() string {
	return g.Quietly("m1", "skep stack ps --no-trunc --filter desired-state=running --format '{{.ID}}' wp | sort")
}
