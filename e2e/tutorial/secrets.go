package tutorial

import (
	"fmt"
	"strings"
	"time"
)

func secrets(g *Guide) {
	g.Say("Passwords do not belong into a service's settings, where everybody can read them. A **secret** is kept encrypted, goes only to the tasks that are told to have it, and is there a file in memory: `/run/secrets/NAME`. Use it for passwords, TLS certificates, SSH keys and other values of up to 500 KB.")
	g.Run("echo \"PASSWD\" | skep secret create my_secret_data -")
	g.Run("skep service create --name mysql \\\n    --secret source=my_secret_data,target=mysql_root_password \\\n    -e MYSQL_ROOT_PASSWORD_FILE=\"/run/secrets/mysql_root_password\" \\\n    mysql:latest")
	g.Shows(g.Run("skep secret ls"), "my_secret_data")
	g.Say("The password is in the container and nowhere else. The server takes it:")
	sql := "skep exec mysql.1 sh -c 'mariadb -uroot -p\"$(cat /run/secrets/mysql_root_password)\" -h 127.0.0.1 -N -e \"SELECT CURRENT_USER()\"'"
	g.Shows(g.Until(30*time.Second, sql, func(Output) string { return "" }), "root@%")
	g.Want(g.Quietly("m1", "skep exec mysql.1 cat /run/secrets/mysql_root_password") == "PASSWD", "the secret's file has something else in it")
	g.Quietly("m1", "skep exec mysql.1 healthcheck.sh")
	for _, line := range []string{"skep secret inspect my_secret_data", "skep service inspect mysql"} {
		g.Want(!strings.Contains(g.Quietly("m1", line), "PASSWD"), "%s shows the password", line)
	}
	g.Say("A secret in use is not removed:")
	g.Refused("m1", 1, "skep secret rm my_secret_data", "my_secret_data", "in use", "mysql")
	g.Quietly("m1", "skep service rm mysql && skep secret rm my_secret_data")

	g.Say("### Example: a blog with its database")
	g.Say("The manager shall only manage here, see chapter 4: then nothing of the blog needs it.")
	g.Run("skep node update --availability drain m1")
	g.Say("Two random passwords, which nobody needs to know. The second way, by a file, does the same.")
	g.Run("openssl rand -base64 20 | skep secret create mysql_root_password -")
	g.Run("openssl rand -base64 20 > password.txt\nskep secret create mysql_password ./password.txt\nrm password.txt")
	g.Say("A network for the two services. The database is not published: only who is on this network reaches it.")
	g.Run("skep network create -d overlay mysql_private")
	g.Run("skep service create \\\n    --name mysql \\\n    --network mysql_private \\\n    --secret source=mysql_root_password,target=mysql_root_password \\\n    --secret source=mysql_password,target=mysql_password \\\n    -e MYSQL_ROOT_PASSWORD_FILE=\"/run/secrets/mysql_root_password\" \\\n    -e MYSQL_PASSWORD_FILE=\"/run/secrets/mysql_password\" \\\n    -e MYSQL_USER=\"wordpress\" \\\n    -e MYSQL_DATABASE=\"wordpress\" \\\n    mysql:latest")
	g.Run("skep service create \\\n    --name wordpress \\\n    --network mysql_private \\\n    --publish 30000:80 \\\n    --secret source=mysql_password,target=wp_db_password \\\n    -e WORDPRESS_DB_HOST=\"mysql:3306\" \\\n    -e WORDPRESS_DB_NAME=\"wordpress\" \\\n    -e WORDPRESS_DB_USER=\"wordpress\" \\\n    -e WORDPRESS_DB_PASSWORD_FILE=\"/run/secrets/wp_db_password\" \\\n    wordpress:latest")
	g.Shows(g.Run("skep service ls"), "mysql", "wordpress", "*:30000->80/tcp")
	g.Say("Open http://m1:30000/ in a browser, or any other node's address. WordPress asks for the name of the blog and for a user; after that, write a post.")
	post := g.firstPost()
	g.blogStands(post)
	g.Say("The front page, through a node that runs whatever it runs:")
	for _, h := range members {
		o := g.On("client", "curl -s http://"+h+":30000/ | grep -o -e '<title>[^<]*' -e '>"+post+"<'")
		g.Shows(o, blogTitle, post)
	}

	g.Say("### The blog in operation")
	g.Say("More replicas of WordPress. They share the database, and the login holds on all of them.")
	g.Run("skep service scale wordpress=2")
	g.blogStands(post)
	g.writePost("Written by one of two")
	g.Say("A change of settings is an update like any other, and can be taken back. Nobody who reads the blog notices.")
	end := g.askOften("http://" + g.address("m1") + ":30000/")
	g.Run("skep service update --update-order start-first --update-monitor 1s --env-add WORDPRESS_DEBUG=1 wordpress")
	g.blogStands(post)
	g.Run("skep service update --rollback wordpress")
	g.blogStands(post)
	asked, failed, first := end()
	g.Want(asked > 0 && failed == 0, "%d of %d requests failed during the update and the rollback, such as: %v", failed, asked, first)

	g.Say("A host dies that runs WordPress and not the database: the blog stands, and the post is there.")
	victim := g.hostWithout("wordpress", "mysql")
	g.PowerOff(victim)
	g.awaitRunning("wordpress", 2, 30*time.Second, victim)
	g.Await("the blog without "+victim, 10*time.Second, func() string { return g.blogThrough(post, without(members, victim)...) })
	g.Until(20*time.Second, "skep service ls", func(o Output) string {
		if !strings.Contains(o.Stdout, "2/2") || !strings.Contains(o.Stdout, "1/1") {
			return o.Stdout
		}
		return ""
	})
	g.PowerOn(victim)
	g.awaitNode(victim, "Ready", time.Minute)

	g.Say("The manager's daemon dies: what runs, runs on, and the blog is read and written while there is no manager.")
	g.On("m1", "pkill -9 -x skep")
	for range 5 {
		g.blogStands(post)
	}
	g.writePost("Written without a manager")
	if err := g.Lab.StartDaemon(g.ctx, "m1"); err != nil {
		g.stop(err)
	}
	g.Say("Its init system starts it again, and it finds everything as it was.")
	g.Await("the manager is back", 30*time.Second, func() string { return g.Try("m1", "skep node ls").Stderr })
	g.awaitNode("m1", "Ready", 30*time.Second)
	g.blogStands("Written without a manager")

	g.Say("What is no longer needed goes:")
	g.Run("skep service rm wordpress mysql")
	g.Run("skep secret rm mysql_root_password mysql_password")
	g.Until(20*time.Second, "skep network rm mysql_private", func(Output) string { return "" })
	g.awaitNothing()
}

// firstPost installs the blog through m1 and writes into it, and returns the post's title.
func (g *Guide) firstPost() string {
	const title = "Hello from three hosts"
	b := blog{g.browser(), "http://m1:30000"}
	g.Await("WordPress's installation", 60*time.Second, func() string { return word(b.install()) })
	g.Await("the post", 20*time.Second, func() string {
		if err := b.login(); err != nil {
			return err.Error()
		}
		return word(b.write(title, "It was written on a cluster."))
	})
	return title
}

// writePost writes one more.
func (g *Guide) writePost(title string) {
	b := blog{g.browser(), "http://m1:30000"}
	err := b.login()
	g.Want(err == nil, "log in: %v", err)
	err = b.write(title, "It was written on a cluster.")
	g.Want(err == nil, "write: %v", err)
}

// blogStands wants the front page with a post through every node.
func (g *Guide) blogStands(post string) {
	g.Await("the blog through every node", 20*time.Second, func() string { return g.blogThrough(post, members...) })
}

func (g *Guide) blogThrough(post string, hosts ...string) string {
	for _, h := range hosts {
		b := blog{g.browser(), "http://" + h + ":30000"}
		b.Timeout = 4 * time.Second // one that waits for what is gone says nothing of those that come after
		if err := b.front(post); err != nil {
			return err.Error()
		}
	}
	return ""
}

// hostWithout is a worker that runs one service and not the other.
func (g *Guide) hostWithout(with, without string) string {
	w, wo := g.running(with), g.running(without)
	for _, h := range []string{"w1", "w2"} {
		if len(w[h]) > 0 && len(wo[h]) == 0 {
			return h
		}
	}
	g.stop(fmt.Errorf("no worker runs %s and not %s: %v %v", with, without, w, wo))
	return ""
}

func without(all []string, one string) (rest []string) {
	for _, h := range all {
		if h != one {
			rest = append(rest, h)
		}
	}
	return rest
}

func word(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
