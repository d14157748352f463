package specflag

import (
	"errors"
	"math/big"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"
)

// flagsOf are the names of the flags that register puts into a set, in order.
func flagsOf(register func(*pflag.FlagSet)) (out []string) {
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	register(fs)
	fs.VisitAll(func(f *pflag.Flag) { out = append(out, f.Name) })
	return out
}

// values are good and bad ones of every kind of flag.
var values = []string{
	"", "1", "-1", "0.5", "1.5g", "10s", "true", "web", "a=b", "a=", "=b", "8080:80/udp", "8000-8010:8000-8010/sctp", "published=80,target=80,mode=host", "target=80\npublished=81",
	"type=bind,src=/a,dst=/b,ro,bind-propagation=rprivate", "type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=1777", `type=volume,dst=/v,"volume-opt=o=a,b",volume-label=x=y`, "type=image,source=i,target=/i,image-subpath=a",
	"name=front,alias=a,driver-opt=x=y", "source=s,target=/t,uid=1,gid=2,mode=0400", "nofile=1024:2048", "gpu=2", "spread=node.labels.dc", "node.role==worker", "host:10.0.0.1", "[::1]", "10.0.9.0/24", "fd00::/64",
	"NET_ADMIN", "config://c", "json-file", "pause", "start-first", "vip", "on-failure", "curl -f 'http://x' || exit 1", ":8080/healthz", "8080", "*/5 * * * *", "db:healthy", "3,1", "\u202e\x1b", "\xff", "a\x00b",
}

// FuzzFlags: whatever the value of a flag of `service create` or `service update`, it is refused as a mistake in the
// command or makes a spec that can be sent and keeps what every spec does.
func FuzzFlags(f *testing.F) {
	create := flagsOf(func(fs *pflag.FlagSet) { Create(fs) })
	update := flagsOf(func(fs *pflag.FlagSet) { Update(fs) })
	for i := range max(len(create), len(update)) {
		for _, v := range values {
			f.Add(uint16(i), v, "web")
		}
	}
	have, err := func() (*skepv1.ServiceSpec, error) {
		fs := pflag.NewFlagSet("", pflag.ContinueOnError)
		c := Create(fs)
		err := fs.Parse([]string{"--publish", "8080:80", "--mount", "type=volume,src=v,dst=/v", "--env", "A=1", "--network", "front", "--label", "a=b", "--host", "h:10.0.0.1", "--limit-memory", "1g", "--health-cmd", "true"})
		if err != nil {
			return nil, err
		}
		return c.Spec("httpd", []string{"-x"})
	}()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, at uint16, value, arg string) {
		fs := pflag.NewFlagSet("", pflag.ContinueOnError)
		c := Create(fs)
		if name := create[int(at)%len(create)]; name != "env-file" { // it opens a file, see FuzzEnvFile
			var s *skepv1.ServiceSpec
			err := fs.Set(name, value)
			if err == nil {
				s, err = c.Spec("httpd", []string{arg})
			}
			sound(t, "--"+name, s, err)
		}
		fs = pflag.NewFlagSet("", pflag.ContinueOnError)
		u := Update(fs)
		name := update[int(at)%len(update)]
		s := proto.CloneOf(have)
		err := fs.Set(name, value)
		if err == nil {
			err = u.Apply(s)
		}
		sound(t, "--"+name, s, err)
	})
}

func sound(t *testing.T, flag string, s *skepv1.ServiceSpec, err error) {
	t.Helper()
	if err != nil {
		if !errors.Is(err, ErrInvalid) || len(err.Error()) < 4 {
			t.Fatalf("%s: %v is no mistake in a command", flag, err)
		}
		return
	}
	if _, err := proto.Marshal(s); err != nil {
		t.Fatalf("%s: %v", flag, err)
	}
	for _, p := range s.GetEndpoint().GetPorts() {
		if p.TargetPort == 0 || p.TargetPort > 65535 || p.PublishedPort > 65535 || !strings.Contains(" tcp udp sctp", " "+p.Protocol) {
			t.Fatalf("%s: port %v", flag, p)
		}
	}
	for _, m := range s.Task.Container.Mounts {
		if m.Target == "" || m.TmpfsSize < 0 {
			t.Fatalf("%s: mount %v", flag, m)
		}
	}
	for _, h := range s.Task.Container.Hosts {
		if len(strings.Fields(h)) != 2 || strings.ContainsAny(h, "\n#") {
			t.Fatalf("%s: host %q", flag, h)
		}
	}
	for _, e := range s.Task.Container.Env {
		if k, _, ok := strings.Cut(e, "="); !ok || k == "" {
			t.Fatalf("%s: variable %q", flag, e)
		}
	}
	for _, r := range []*skepv1.Resources{s.Task.GetResources().GetLimits(), s.Task.GetResources().GetReservations()} {
		if r.GetMemoryBytes() < 0 || r.GetNanoCpus() < 0 || r.GetPids() < 0 && r.GetPids() != -1 {
			t.Fatalf("%s: resources %v", flag, r)
		}
	}
	for _, d := range []time.Duration{s.GetUpdate().GetDelay().AsDuration(), s.GetUpdate().GetMonitor().AsDuration(), s.Task.GetRestart().GetDelay().AsDuration(), s.Task.GetRestart().GetWindow().AsDuration(),
		s.Task.Container.GetStopGracePeriod().AsDuration(), s.Task.Container.GetHealth().GetInterval().AsDuration()} {
		if d < 0 {
			t.Fatalf("%s: %s", flag, d)
		}
	}
}

// FuzzNetworkFlags is the same for `network create`.
func FuzzNetworkFlags(f *testing.F) {
	names := flagsOf(func(fs *pflag.FlagSet) { Network(fs) })
	for i := range names {
		for _, v := range values {
			f.Add(uint16(i), v, "10.0.9.0/24", "10.0.9.1", "10.0.9.128/25")
		}
	}
	f.Fuzz(func(t *testing.T, at uint16, value, subnet, gateway, ipRange string) {
		fs := pflag.NewFlagSet("", pflag.ContinueOnError)
		n := Network(fs)
		err := fs.Set(names[int(at)%len(names)], value)
		for _, x := range [][2]string{{"subnet", subnet}, {"gateway", gateway}, {"ip-range", ipRange}} {
			if err == nil && x[1] != "" {
				err = fs.Set(x[0], x[1])
			}
		}
		var s *skepv1.NetworkSpec
		if err == nil {
			s, err = n.Spec("front")
		}
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("%v is no mistake in a command", err)
			}
			return
		}
		if _, err := proto.Marshal(s); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzEnvFile: a file of variables is refused or gives variables that can be sent.
func FuzzEnvFile(f *testing.F) {
	f.Add([]byte("\ufeffA=1\r\n# c\n\n\tB\nC=x=y \n"))
	f.Add([]byte("A=\xff\n"))
	f.Add([]byte("=x\na b=c\nA=\x00"))
	f.Fuzz(func(t *testing.T, text []byte) {
		lines, err := parseEnvFile("vars", strings.NewReader(string(text)))
		if err == nil {
			_, err = environment(os.LookupEnv, nil, lines)
		}
		if err != nil && !errors.Is(err, ErrInvalid) {
			t.Fatalf("%v is no mistake in a command", err)
		}
		for _, l := range lines {
			k, _, _ := strings.Cut(l, "=")
			if err == nil && (k == "" || strings.ContainsAny(l, "\x00\n") || readable(l) != nil) {
				t.Fatalf("%q", l)
			}
		}
	})
}

// FuzzScalars: what a number, a size or a command line was read as, it is read as again.
func FuzzScalars(f *testing.F) {
	for _, v := range append([]string{"1e9", "1e999999999", "0x10", "0.000000001", "9223372036854775807", "8191p", "1e-400", `a "b c" 'd'\ e`}, values...) {
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := ParseCPUs(s); err == nil {
			if again, err := ParseCPUs(cpus(n)); err != nil || again != n || n < 0 {
				t.Fatalf("%q is %d, %s, %d, %v", s, n, cpus(n), again, err)
			}
		}
		if n, err := ParseBytes(s); err == nil && n < 0 {
			t.Fatalf("%q is %d bytes", s, n)
		}
		if words, err := SplitWords(s); err == nil {
			quoted := make([]string, len(words))
			for i, w := range words {
				quoted[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
			}
			again, err := SplitWords(strings.Join(quoted, " "))
			if err != nil || strings.Join(again, "\x00") != strings.Join(words, "\x00") {
				t.Fatalf("%q: %q, again %q %v", s, words, again, err)
			}
		}
	})
}

// cpus is the inverse of ParseCPUs.
func cpus(nano int64) string {
	return strings.TrimRight(strings.TrimRight(big.NewRat(nano, 1e9).FloatString(9), "0"), ".")
}
