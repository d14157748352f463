// Command skep-lab makes many hosts on one machine and a skep cluster on them: what the tests use and what a newcomer tries first.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"skep.dev/e2e/images"
	"skep.dev/e2e/lab"
)

const usage = `skep-lab makes many hosts on one machine, and a skep cluster on them. It needs root.

  skep-lab up [-name L] [-n 3] [-managers 1] [-no-cluster] [-race]   make a lab; -n counts all hosts: m1.. are managers, w1.. workers
                                        -managers 3: the first three join one after another with the managers' token
                                        -separate: every service as a process of its own
                                        -volume-plugin rexray: a volume plug-in of that name on every host
  skep-lab exec HOST -- CMD [ARG...]    run a command on a host; skep, curl, dig and nc are there
  skep-lab client -- CMD [ARG...]       run a command on a host outside the cluster
  skep-lab ip HOST                      print a host's address
  skep-lab kill HOST                    power-off: every process gone at once, the disk stays
  skep-lab start HOST                   switch it on again
  skep-lab cut HOST | heal HOST         pull a host's network cable, put it back
  skep-lab freeze HOST | thaw HOST      stop a host's daemon where it stands, connections open (SIGSTOP); let it go on
  skep-lab clock HOST OFFSET          set the clock of a host's processes: 8760h is a year ahead, ` + "`-- -1h`" + ` an hour behind, 0s right again
  skep-lab logs [-containerd] HOST      print the log of a host's daemon, or of its containerd
  skep-lab ps                           the hosts of the lab
  skep-lab ls                           the labs of this machine
  skep-lab down [-all]                  end everything and leave nothing
  skep-lab image NAME FILE              write one of the project's images as an archive for ` + "`skep image load`" + `

Every command takes -name L (default "lab", or SKEP_LAB); labs of different names do not see one another.
`

// errUsage is a command line that makes no sense: exit status 2.
var errUsage = errors.New("usage")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case err == nil:
	case errors.Is(err, errUsage):
		fmt.Fprintln(os.Stderr, "skep-lab:", err)
		fmt.Fprintln(os.Stderr, "Run `skep-lab help` to see the commands.")
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "skep-lab:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	name := os.Getenv("SKEP_LAB")
	if name == "" {
		name = lab.DefaultName
	}
	if len(args) >= 2 && (args[0] == "-name" || args[0] == "--name") { // before the command as well as after it
		name, args = args[1], args[2:]
	}
	if len(args) == 0 {
		fmt.Fprint(stdout, usage)
		return nil
	}
	verb := args[0]
	fs := flag.NewFlagSet("skep-lab "+verb, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&name, "name", name, "")
	var o lab.Options
	var all, containerd bool
	switch verb {
	case "up":
		fs.IntVar(&o.Hosts, "n", 3, "")
		fs.IntVar(&o.Managers, "managers", 1, "")
		fs.BoolVar(&o.NoCluster, "no-cluster", false, "")
		fs.BoolVar(&o.Race, "race", false, "")
		fs.BoolVar(&o.Separate, "separate", false, "")
		fs.StringVar(&o.VolumePlugin, "volume-plugin", "", "")
	case "logs":
		fs.BoolVar(&containerd, "containerd", false, "")
	case "down":
		fs.BoolVar(&all, "all", false, "")
	}
	rest, err := parse(fs, args[1:])
	if err != nil {
		return fmt.Errorf("%w: %s: %w", errUsage, verb, err)
	}
	one := func() (*lab.Lab, string, error) {
		if len(rest) != 1 {
			return nil, "", fmt.Errorf("%w: skep-lab %s HOST", errUsage, verb)
		}
		l, err := lab.Load(name)
		return l, rest[0], err
	}
	act := func(f func(*lab.Lab, string) error) error {
		l, host, err := one()
		if err != nil {
			return err
		}
		return f(l, host)
	}
	switch verb {
	case "up":
		return up(ctx, name, o, stdout, stderr)
	case "exec":
		if len(rest) == 0 {
			return fmt.Errorf("%w: skep-lab exec HOST -- CMD [ARG...]", errUsage)
		}
		return become(name, rest[0], rest[1:])
	case "client":
		return become(name, "client", rest)
	case "ip":
		return act(func(l *lab.Lab, host string) error {
			h, err := l.Host(host)
			if err == nil {
				fmt.Fprintln(stdout, h.IP)
			}
			return err
		})
	case "clock":
		if len(rest) != 2 {
			return fmt.Errorf("%w: skep-lab clock HOST OFFSET", errUsage)
		}
		offset, err := time.ParseDuration(rest[1])
		if err != nil {
			return fmt.Errorf("%w: the offset of a clock: %w", errUsage, err)
		}
		l, err := lab.Load(name)
		if err != nil {
			return err
		}
		return l.Clock(ctx, rest[0], offset)
	case "kill":
		return act(func(l *lab.Lab, host string) error { return l.Kill(ctx, host) })
	case "start":
		return act(func(l *lab.Lab, host string) error { return l.Start(ctx, host) })
	case "cut":
		return act(func(l *lab.Lab, host string) error { return l.Cut(ctx, host) })
	case "heal":
		return act(func(l *lab.Lab, host string) error { return l.Heal(ctx, host) })
	case "freeze":
		return act(func(l *lab.Lab, host string) error { return l.Freeze(ctx, host) })
	case "thaw":
		return act(func(l *lab.Lab, host string) error { return l.Thaw(ctx, host) })
	case "logs":
		return act(func(l *lab.Lab, host string) error { return logs(l, host, containerd, stdout) })
	case "ps":
		return ps(name, stdout)
	case "ls":
		return list(stdout)
	case "down":
		return down(name, all)
	case "image":
		if len(rest) != 2 {
			return fmt.Errorf("%w: skep-lab image NAME FILE; there are %s", errUsage, strings.Join(images.Names(), ", "))
		}
		return image(ctx, rest[0], rest[1])
	case "help", "-h", "--help":
		fmt.Fprint(stdout, usage)
		return nil
	}
	return fmt.Errorf("%w: no command %q", errUsage, verb)
}

// parse takes flags before and after the first word, as in `exec m1 -name x -- ls -l`, but none after `--`.
func parse(fs *flag.FlagSet, args []string) ([]string, error) {
	var rest []string
	for len(args) > 0 {
		if args[0] == "--" {
			return append(rest, args[1:]...), nil
		}
		if !strings.HasPrefix(args[0], "-") {
			rest, args = append(rest, args[0]), args[1:]
			if len(rest) > 1 { // a command without the dashes: its flags are its own
				return append(rest, args...), nil
			}
			continue
		}
		before := len(args)
		if err := fs.Parse(args); err != nil {
			return nil, err
		}
		ended := before > fs.NArg() && args[before-fs.NArg()-1] == "--"
		args = fs.Args()
		if ended {
			return append(rest, args...), nil
		}
	}
	return rest, nil
}

func up(ctx context.Context, name string, o lab.Options, stdout, stderr io.Writer) error {
	o.Name, o.Progress = name, stderr
	l, err := lab.Up(ctx, o)
	if err != nil {
		return err
	}
	flag := ""
	if name != lab.DefaultName {
		flag = "-name " + name + " "
	}
	host := l.Hosts[0].Name
	fmt.Fprintf(stdout, "Lab %s is up. Try:\n  skep-lab %sexec %s -- skep node ls\n  skep-lab %sexec %s -- skep service create --name web --replicas 3 httpd\n  skep-lab %sdown\n",
		name, flag, host, flag, host, flag)
	return nil
}

func become(name, host string, argv []string) error {
	if len(argv) == 0 {
		return fmt.Errorf("%w: which command? skep-lab exec HOST -- CMD [ARG...]", errUsage)
	}
	l, err := lab.Load(name)
	if err != nil {
		return err
	}
	return l.Become(host, argv...)
}

func logs(l *lab.Lab, host string, containerd bool, stdout io.Writer) error {
	files, err := l.LogFiles(host)
	if err != nil {
		return err
	}
	var failed error
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if (name == "containerd") != containerd {
			continue
		}
		f, err := os.Open(files[name])
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("host %s has no such log: %w", host, err))
			continue
		}
		_, err = io.Copy(stdout, f)
		failed = errors.Join(failed, err, f.Close())
	}
	return failed
}

func ps(name string, stdout io.Writer) error {
	l, err := lab.Load(name)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(stdout, 0, 4, 3, ' ', 0)
	fmt.Fprintln(w, "HOST\tROLE\tADDRESS\tSTATE\tPID")
	for _, h := range l.Hosts {
		state, pid := "on", fmt.Sprint(h.PID)
		switch {
		case !h.Running():
			state, pid = "off", "-"
		case h.Cut:
			state = "cut"
		case h.Frozen:
			state = "frozen"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", h.Name, h.Role, h.IP, state, pid)
	}
	return w.Flush()
}

func list(stdout io.Writer) error {
	names, err := lab.List()
	for _, n := range names {
		fmt.Fprintln(stdout, n)
	}
	return err
}

func image(ctx context.Context, name, file string) error {
	bin, err := lab.FindBin("")
	if err != nil {
		return err
	}
	in, err := lab.Inputs(bin)
	if err != nil {
		return err
	}
	imgs, err := images.Build(ctx, in, name)
	if err != nil {
		return err
	}
	return images.WriteArchive(file, imgs...)
}

func down(name string, all bool) error {
	if !all {
		return lab.Remove(name)
	}
	names, err := lab.List()
	for _, n := range names {
		err = errors.Join(err, lab.Remove(n))
	}
	return err
}
