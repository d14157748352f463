package specflag

import (
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"
)

func network(args string) (*skepv1.NetworkSpec, error) {
	fs := pflag.NewFlagSet("create", pflag.ContinueOnError)
	f := Network(fs)
	if err := fs.Parse(strings.Fields(args)); err != nil {
		return nil, err
	}
	return f.Spec("net")
}

func TestNetwork(t *testing.T) {
	for args, want := range map[string]string{
		"": "", "-d overlay --scope swarm": "", "--internal --attachable --ipv6": "internal: true attachable: true ipv6: true",
		"--label a=b --label c":                                 `labels { key: "a" value: "b" } labels { key: "c" value: "" }`,
		"-o encrypted --opt com.docker.network.driver.mtu=1400": `driver_opts { key: "encrypted" value: "" } driver_opts { key: "com.docker.network.driver.mtu" value: "1400" }`,
		"-d bridge":                        `driver: "bridge"`,
		"--subnet 10.0.9.0/24":             `ipam { subnet: "10.0.9.0/24" }`,
		"--subnet 10.0.9.0/24,fd00:1::/64": `ipam { subnet: "10.0.9.0/24" } ipam { subnet: "fd00:1::/64" }`,
		"--ipam-driver default --ipv4":     "",
		"--subnet 10.0.9.0/24 --gateway 10.0.9.7 --ip-range 10.0.9.128/25": `ipam { subnet: "10.0.9.0/24" gateway: "10.0.9.7" ip_range: "10.0.9.128/25" }`,
		// By containment, not by position.
		"--subnet 10.0.9.0/24 --subnet fd00:1::/64 --gateway fd00:1::9 --gateway 10.0.9.9": `ipam { subnet: "10.0.9.0/24" gateway: "10.0.9.9" } ipam { subnet: "fd00:1::/64" gateway: "fd00:1::9" }`,
	} {
		w := &skepv1.NetworkSpec{}
		if err := prototext.Unmarshal([]byte(want), w); err != nil {
			t.Fatal(err)
		}
		w.Name = "net"
		if w.Driver == "" {
			w.Driver = "overlay"
		}
		got, err := network(args)
		if err != nil || !proto.Equal(got, w) {
			t.Errorf("%s: %v %v, want %v", args, got, err, w)
		}
	}
}

func TestNetworkMistakes(t *testing.T) {
	for args, want := range map[string]string{
		"--gateway 10.0.9.1":                          "every ip-range or gateway must have a corresponding subnet",
		"--ip-range 10.0.9.0/25":                      "every ip-range or gateway must have a corresponding subnet",
		"--subnet 10.0.0.0/16 --subnet 10.0.9.0/24":   "multiple overlapping subnet configuration is not supported",
		"--subnet 10.0.9.0/24 --gateway 10.0.8.1":     "no matching subnet for gateway 10.0.8.1",
		"--subnet 10.0.9.0/24 --ip-range 10.0.8.0/25": "no matching subnet for range 10.0.8.0/25",
		"--subnet 10.0.9.0/24 --subnet 10.1.9.0/24 --ip-range 10.0.9.0/25 --ip-range 10.0.9.128/25": "cannot configure multiple ranges (10.0.9.128/25, 10.0.9.0/25) on the same subnet (10.0.9.0/24)",
		"--subnet 10.0.9.0/24 --subnet 10.1.9.0/24 --gateway 10.0.9.1 --gateway 10.0.9.2":           "cannot configure multiple gateways (10.0.9.2, 10.0.9.1) for the same subnet (10.0.9.0/24)",
		"--subnet 10.0.9.0":                 "invalid subnet 10.0.9.0",
		"--subnet 10.0.9.0/24 --ip-range x": "invalid ip-range x",
		"--subnet 10.0.9.0/24 --gateway x":  "invalid gateway x",
		"--aux-address a=10.0.9.2":          "--aux-address is not supported",
		"--ingress":                         "--ingress is not supported",
		"--config-only":                     "--config-only is not supported",
		"--config-from x":                   "--config-from is not supported",
		"--scope local":                     "--scope local is not supported",
		"--ipv4=false":                      "--ipv4=false is not supported",
		"--ipam-driver x":                   "--ipam-driver x is not supported",
		"--ipam-opt a=b":                    "--ipam-opt is not supported",
		"-o =x":                             "invalid driver option '=x'",
		"--label =x":                        "empty name",
	} {
		if _, err := network(args); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", args, err, want)
		}
	}
}

// What a service's task is called and where it is on a network.
func TestParseNetworkAttachment(t *testing.T) {
	n, err := ParseNetwork("name=net,alias=a,alias=b_c.d,ip=10.0.5.7,ip6=fd00:5::7")
	if err != nil || n.Target != "net" || len(n.Aliases) != 2 || n.Ipv4Address != "10.0.5.7" || n.Ipv6Address != "fd00:5::7" {
		t.Errorf("%v %v", n, err)
	}
	if _, err := ParseNetwork("name=net,addr=10.0.5.7"); err == nil {
		t.Error("a field nobody knows is taken")
	}
}

func TestParseHostIP(t *testing.T) {
	for in, want := range map[string]string{"127.0.0.1": "127.0.0.1", "[::1]": "::1", "0.0.0.0": "", "::": "", "::ffff:10.0.0.1": "10.0.0.1"} {
		p, err := ParsePorts("mode=host,published=80,target=80,host_ip=" + in)
		if err != nil || p[0].HostIp != want {
			t.Errorf("%s: %v %v", in, p, err)
		}
	}
	for in, want := range map[string]string{
		"published=80,target=80,host_ip=127.0.0.1":      "needs mode=host",
		"mode=host,published=80,target=80,host_ip=eth0": "invalid host_ip",
		"mode=host,target=80,host_ip=fe80::1%eth0":      "invalid host_ip",
		"127.0.0.1:8080:80":                             "use mode=host,host_ip=127.0.0.1,published=8080,target=80",
		"127.0.0.1::80":                                 "use mode=host,host_ip=127.0.0.1,target=80",
		"[::1]:8080:80":                                 "use mode=host,host_ip=::1,published=8080,target=80",
		"127.0.0.1:80":                                  "use mode=host,host_ip=127.0.0.1,target=80",
	} {
		if _, err := ParsePorts(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", in, err, want)
		}
	}
}
