package cases

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
	"skep.dev/libs/ipam"
)

// A container as any is started, with CAP_NET_RAW, does not speak to another node's data path, and not in another
// container's name, on the node's bridge and on an overlay network.
func TestContainersSendAsThemselves(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{})
	c.skep("network", "create", "back")
	for _, name := range []string{"liar", "victim"} {
		c.skep("service", "create", "--name", name, "--constraint", "node.hostname==w1", "--network", "back", "whoami:v1")
	}
	c.skep("service", "create", "--name", "far", "--constraint", "node.hostname==w2", "--network", "back", "whoami:v1")
	c.skep("service", "update", "--publish-add", "8080:80", "victim")
	for _, name := range []string{"liar", "victim", "far"} {
		c.awaitRunning(name, 1, time.Minute)
	}
	c.awaitPort(8080)
	task := map[string]string{}
	at := map[string][2]netip.Addr{} // on eth0 and eth1
	for _, name := range []string{"liar", "victim", "far"} {
		for host, list := range c.running(name) {
			task[name] = list[0].ID
			var a [2]netip.Addr
			for i, dev := range []string{"eth0", "eth1"} {
				out := c.skep("exec", list[0].ID, "ip", "-4", "-o", "addr", "show", "dev", dev)
				m := inet.FindStringSubmatch(out)
				if m == nil {
					t.Fatalf("task of %s on %s has no address at %s:\n%s", name, host, dev, out)
				}
				a[i] = netip.MustParseAddr(m[1])
			}
			at[name] = a
		}
	}
	// What a task sends that begins so is counted where it comes in, and nothing of the fabric begins so.
	watch := "table inet watch { chain c { type filter hook prerouting priority -450; @th,64,32 0x736b6570 counter\n}\n}\n"
	c.must("w2", "printf '%s' '"+watch+"' | nft -f -")
	came := func() (n int) {
		out := c.must("w2", "nft list chain inet watch c")
		_, _ = fmt.Sscanf(out[strings.Index(out, "counter packets"):], "counter packets %d", &n)
		return n
	}
	_, gateway, _ := strings.Cut(c.skep("exec", task["liar"], "ip", "route", "show", "default"), "via ")
	hop, err := netip.ParseAddr(strings.Fields(gateway + " -")[0])
	if err != nil {
		t.Fatalf("the liar's way out: %v", err)
	}
	send := func(dev string, frame []byte) {
		t.Helper()
		if out, ok := c.inTask(task["liar"], "/bin/whoami", "-link", dev, "-frame", hex.EncodeToString(frame)); !ok {
			t.Fatalf("the container cannot even try: %s", out)
		}
	}
	udp := func(port uint16) {
		t.Helper()
		send("eth0", udpFrame(at["liar"][0], hop, netip.MustParseAddr(fabric["w2"]), port, "skep"))
	}
	udp(4789)
	udp(51820)
	udp(7777) // nobody has that port, and it is no data path
	c.await("what is for no data path comes", 10*time.Second, func() string {
		if came() == 0 {
			return "nothing came"
		}
		return ""
	})
	if n := came(); n != 1 {
		t.Errorf("%d packets came to w2, of which one was not for its data path", n)
	}

	// In the victim's name: an answer to everybody.
	where := []string{"nft list table bridge skep_ports", "for n in /run/skep/overlays/*; do nsenter --net=$n nft list table bridge skep_ports; done"}
	dropped := func(i int) (n int) {
		for line := range strings.Lines(c.must("w1", where[i])) {
			if _, counted, ok := strings.Cut(line, "counter packets "); ok && strings.Contains(line, "nothing else") {
				_, _ = fmt.Sscan(counted, &n)
			}
		}
		return n
	}
	for i, dev := range []string{"eth0", "eth1"} {
		mine, his, before := at["liar"][i], at["victim"][i], dropped(i)
		mac := ipam.MAC(mine)
		frame := append([]byte{255, 255, 255, 255, 255, 255}, mac[:]...)
		frame = append(append(frame, 8, 6, 0, 1, 8, 0, 6, 4, 0, 2), mac[:]...)
		frame = append(append(append(frame, his.AsSlice()...), mac[:]...), his.AsSlice()...)
		for range 3 {
			send(dev, frame)
		}
		if got := dropped(i) - before; got != 3 {
			t.Errorf("%d of 3 lies were dropped at %s", got, dev)
		}
	}
	his := ipam.MAC(at["victim"][0])
	if out := c.must("w1", "ip neigh show dev skep0"); !strings.Contains(out, at["victim"][0].String()+" lladdr "+net.HardwareAddr(his[:]).String()+" PERMANENT") {
		t.Errorf("w1 does not know for certain where the victim is:\n%s", out)
	}
	if _, err := c.ask("client", "http://"+fabric["w1"]+":8080/"); err != nil {
		t.Errorf("the victim's port: %v", err)
	}
	if out, ok := c.inTask(task["far"], "timeout", "3", "wget", "-q", "-O", "-", "http://"+at["victim"][1].String()+"/"); !ok {
		t.Errorf("the victim is not reached on the network: %s", out)
	}
	if out, ok := c.inTask(task["liar"], "timeout", "3", "wget", "-q", "-O", "-", "http://far/"); !ok || !strings.Contains(out, at["liar"][1].String()) {
		t.Errorf("the liar, as itself, does not reach the far task: %s", out)
	}
}

// udpFrame is a packet of a task to a host, by way of its node.
func udpFrame(from, hop, to netip.Addr, port uint16, says string) []byte {
	mine, next := ipam.MAC(from), ipam.MAC(hop)
	head := []byte{0x45, 0, 0, byte(28 + len(says)), 0, 0, 0, 0, 64, 17, 0, 0}
	head = append(append(head, from.AsSlice()...), to.AsSlice()...)
	sum := uint32(0)
	for i := 0; i < len(head); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(head[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(head[10:], ^uint16(sum>>16+sum))
	out := append(append(append([]byte{}, next[:]...), mine[:]...), 8, 0)
	out = append(append(out, head...), 0x13, 0x88, byte(port>>8), byte(port), 0, byte(8+len(says)), 0, 0)
	return append(out, says...)
}
