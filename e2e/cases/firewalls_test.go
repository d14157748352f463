package cases

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// dockersRules and ufwsRules are what dockerd (20.10 to 27, one user-defined bridge beside docker0) and ufw 0.36 with
// DEFAULT_FORWARD_POLICY="DROP" write, by iptables-restore --noflush. What skep needs of a host's INPUT is open, as its guide asks.
const dockersRules = `*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -s 172.18.0.0/16 ! -o br-5a1c8d9e7f00 -j MASQUERADE
-A POSTROUTING -s 172.17.0.2/32 -d 172.17.0.2/32 -p tcp -m tcp --dport 80 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A DOCKER -i br-5a1c8d9e7f00 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8000 -j DNAT --to-destination 172.17.0.2:80
COMMIT
*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-I FORWARD 1 -j DOCKER-USER
-I FORWARD 2 -j DOCKER-ISOLATION-STAGE-1
-I FORWARD 3 -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-I FORWARD 4 -o docker0 -j DOCKER
-I FORWARD 5 -i docker0 ! -o docker0 -j ACCEPT
-I FORWARD 6 -i docker0 -o docker0 -j ACCEPT
-I FORWARD 7 -o br-5a1c8d9e7f00 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-I FORWARD 8 -o br-5a1c8d9e7f00 -j DOCKER
-I FORWARD 9 -i br-5a1c8d9e7f00 ! -o br-5a1c8d9e7f00 -j ACCEPT
-I FORWARD 10 -i br-5a1c8d9e7f00 -o br-5a1c8d9e7f00 -j ACCEPT
-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -i br-5a1c8d9e7f00 ! -o br-5a1c8d9e7f00 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -o br-5a1c8d9e7f00 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
`

const ufwsRules = `*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:ufw-before-logging-input - [0:0]
:ufw-before-logging-output - [0:0]
:ufw-before-logging-forward - [0:0]
:ufw-before-input - [0:0]
:ufw-before-output - [0:0]
:ufw-before-forward - [0:0]
:ufw-after-input - [0:0]
:ufw-after-output - [0:0]
:ufw-after-forward - [0:0]
:ufw-after-logging-input - [0:0]
:ufw-after-logging-output - [0:0]
:ufw-after-logging-forward - [0:0]
:ufw-reject-input - [0:0]
:ufw-reject-output - [0:0]
:ufw-reject-forward - [0:0]
:ufw-track-input - [0:0]
:ufw-track-output - [0:0]
:ufw-track-forward - [0:0]
:ufw-logging-deny - [0:0]
:ufw-skip-to-policy-input - [0:0]
:ufw-skip-to-policy-output - [0:0]
:ufw-skip-to-policy-forward - [0:0]
:ufw-not-local - [0:0]
:ufw-user-input - [0:0]
:ufw-user-output - [0:0]
:ufw-user-forward - [0:0]
-A INPUT -j ufw-before-logging-input
-A INPUT -j ufw-before-input
-A INPUT -j ufw-after-input
-A INPUT -j ufw-after-logging-input
-A INPUT -j ufw-reject-input
-A INPUT -j ufw-track-input
-A FORWARD -j ufw-before-logging-forward
-A FORWARD -j ufw-before-forward
-A FORWARD -j ufw-after-forward
-A FORWARD -j ufw-after-logging-forward
-A FORWARD -j ufw-reject-forward
-A FORWARD -j ufw-track-forward
-A OUTPUT -j ufw-before-logging-output
-A OUTPUT -j ufw-before-output
-A OUTPUT -j ufw-after-output
-A OUTPUT -j ufw-after-logging-output
-A OUTPUT -j ufw-reject-output
-A OUTPUT -j ufw-track-output
-A ufw-before-input -i lo -j ACCEPT
-A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-input -m conntrack --ctstate INVALID -j ufw-logging-deny
-A ufw-before-input -m conntrack --ctstate INVALID -j DROP
-A ufw-before-input -p icmp -m icmp --icmp-type 3 -j ACCEPT
-A ufw-before-input -p icmp -m icmp --icmp-type 11 -j ACCEPT
-A ufw-before-input -p icmp -m icmp --icmp-type 12 -j ACCEPT
-A ufw-before-input -p icmp -m icmp --icmp-type 8 -j ACCEPT
-A ufw-before-input -p udp -m udp --sport 67 --dport 68 -j ACCEPT
-A ufw-before-input -j ufw-not-local
-A ufw-before-input -d 224.0.0.251/32 -p udp -m udp --dport 5353 -j ACCEPT
-A ufw-before-input -j ufw-user-input
-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-forward -p icmp -m icmp --icmp-type 3 -j ACCEPT
-A ufw-before-forward -p icmp -m icmp --icmp-type 11 -j ACCEPT
-A ufw-before-forward -p icmp -m icmp --icmp-type 12 -j ACCEPT
-A ufw-before-forward -p icmp -m icmp --icmp-type 8 -j ACCEPT
-A ufw-before-forward -j ufw-user-forward
-A ufw-before-output -o lo -j ACCEPT
-A ufw-before-output -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-output -j ufw-user-output
-A ufw-not-local -m addrtype --dst-type LOCAL -j RETURN
-A ufw-not-local -m addrtype --dst-type MULTICAST -j RETURN
-A ufw-not-local -m addrtype --dst-type BROADCAST -j RETURN
-A ufw-not-local -m limit --limit 3/min --limit-burst 10 -j ufw-logging-deny
-A ufw-not-local -j DROP
-A ufw-skip-to-policy-input -j DROP
-A ufw-skip-to-policy-output -j ACCEPT
-A ufw-skip-to-policy-forward -j DROP
-A ufw-track-output -p tcp -m conntrack --ctstate NEW -j ACCEPT
-A ufw-track-output -p udp -m conntrack --ctstate NEW -j ACCEPT
-A ufw-after-input -p udp -m udp --dport 137 -j ufw-skip-to-policy-input
-A ufw-after-input -p tcp -m tcp --dport 445 -j ufw-skip-to-policy-input
-A ufw-after-input -m addrtype --dst-type BROADCAST -j ufw-skip-to-policy-input
-A ufw-user-input -p tcp -m tcp --dport 22 -j ACCEPT
-A ufw-user-input -p udp -m udp --dport 4789 -j ACCEPT
-A ufw-user-input -p tcp -m tcp --dport 2377 -j ACCEPT
COMMIT
`

// firewallOf is a host's iptables rules that are not skep's, without counters and dates.
func (c *cluster) firewallOf(host string) string {
	c.t.Helper()
	var keep []string
	for line := range strings.Lines(c.must(host, "iptables-save; ip6tables-save")) {
		line, _, _ = strings.Cut(strings.TrimSpace(line), " [")
		if !strings.HasPrefix(line, "#") && !strings.Contains(line, "SKEP-FORWARD") {
			keep = append(keep, line)
		}
	}
	return strings.Join(keep, "\n")
}

func (c *cluster) loadRules(host, rules string) {
	c.t.Helper()
	r, err := c.RunInput(c.ctx, host, rules, "iptables-restore", "--noflush")
	if err != nil || r.Code != 0 {
		c.t.Fatalf("load rules on %s: %v %s", host, err, r.Stderr)
	}
}

// docker and ufw beside skep, there first or started later: what skep carries goes on, their rules stay what they were, and
// a node that leaves takes all of its own away.
func TestForeignFirewalls(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Hosts: 2})
	w2, err := c.Add(c.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if w2.IP != fabric["w2"] {
		t.Fatalf("the host that was added is at %s", w2.IP)
	}
	devices := "ip link add docker0 type bridge && ip addr add 172.17.0.1/16 dev docker0 && ip link set docker0 up"
	traces := `ip -o link | awk -F': ' '{print "link", $2}' | grep -v docker0; ip rule; ip route show table all | grep -v '^broadcast\|^local\|^anycast'; ip -6 rule; nft list tables; ls -A /run/skep 2>/dev/null; true`
	// On w2 they are there before skep is, on m1 and w1 they come later.
	c.must("w2", devices)
	c.loadRules("w2", dockersRules)
	c.loadRules("w2", ufwsRules)
	c.must("w2", "ip6tables -P FORWARD DROP")
	asWas, without := c.firewallOf("w2"), c.must("w2", traces)
	if err := c.Join(c.ctx, w2, c.skep("join-token", "-q", "worker")); err != nil {
		t.Fatal(err)
	}
	c.skep("network", "create", "net1")
	c.skep("service", "create", "--name", "front", "--replicas", "3", "--network", "net1", "--publish", "8080:80", "whoami:v1")
	c.skep("service", "create", "--name", "probe", "--mode", "global", "--network", "net1", "--stop-signal", "SIGKILL", "busybox", "sleep", "100000")
	c.awaitRunning("front", 3, time.Minute)
	c.awaitRunning("probe", 3, time.Minute)
	works := func(when string) {
		t.Helper()
		c.awaitPort(8080)
		for host, ts := range c.running("probe") {
			for what, argv := range map[string][]string{
				"the overlay":                     {"timeout", "3", "wget", "-q", "-O", "-", "http://front/"},
				"out of the cluster":              {"ping", "-c", "1", "-W", "2", "203.0.113.1"},
				"a published port, of every node": {"sh", "-c", "for a in " + fabric["m1"] + " " + fabric["w1"] + " " + fabric["w2"] + "; do timeout 3 wget -q -O - http://$a:8080/ || exit 1; done"},
			} {
				c.await(fmt.Sprintf("%s: from a task on %s: %s", when, host, what), 15*time.Second, func() string {
					if out, ok := c.inTask(ts[0].ID, argv...); !ok {
						return strings.TrimSpace(out + " it fails")
					}
					return ""
				})
			}
		}
		for _, h := range c.members() {
			if a, err := c.ask("client", "http://"+fabric[h]+":8080/"); err != nil || a.client != fabric["client"] {
				t.Errorf("%s: %s sees %q, want the client's address (%v)", when, h, a.client, err)
			}
		}
	}
	works("they were there first")
	later := map[string]string{}
	for _, h := range []string{"w1", "m1"} {
		c.must(h, devices)
		for _, rules := range map[string][]string{"w1": {ufwsRules, dockersRules}, "m1": {dockersRules, ufwsRules}}[h] {
			c.loadRules(h, rules)
		}
		later[h] = c.firewallOf(h)
	}
	works("they came later")
	// A reload (systemctl restart docker, ufw reload) while skep runs, and a restart of skep while they do.
	c.must("w1", "for chain in INPUT FORWARD OUTPUT; do iptables -F $chain; done; for chain in PREROUTING OUTPUT POSTROUTING; do iptables -t nat -F $chain; done")
	c.loadRules("w1", ufwsRules)
	c.loadRules("w1", dockersRules)
	reloaded := c.firewallOf("w1")
	c.kill9("w1", "skep", true)
	if err := c.StartDaemon(c.ctx, "w1"); err != nil {
		t.Fatal(err)
	}
	c.awaitNode("w1", "Ready", 30*time.Second)
	works("they were reloaded")
	later["w1"], later["w2"] = reloaded, asWas
	for h, want := range later {
		if got := c.firewallOf(h); got != want {
			t.Errorf("the rules of others on %s changed:\n%s\nwere:\n%s", h, got, want)
		}
	}
	c.awaitWell(30 * time.Second)

	// The one that had them first leaves.
	if r := c.on("w2", "skep", "leave"); r.Code != 0 {
		t.Fatalf("leave: %s%s", r.Stdout, r.Stderr)
	}
	if got := c.firewallOf("w2"); got != asWas {
		t.Errorf("the rules on w2 after it left:\n%s\nwere:\n%s", got, asWas)
	}
	if out := c.must("w2", "{ iptables-save; ip6tables-save; nft list ruleset; } | grep -i skep; true"); out != "" {
		t.Errorf("a node that left has rules of ours:\n%s", out)
	}
	if got := c.must("w2", traces); got != without {
		t.Errorf("a node that left has\n%s\nand before it joined had\n%s", got, without)
	}
}
