package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"skep.dev/libs/fault"
	"skep.dev/libs/member"
	"skep.dev/libs/pki"
	"skep.dev/services/skep/cli/plain"
)

// managersCommand tells a node whom to turn to: its managers all have other addresses, as after a restore.
func managersCommand() *cobra.Command {
	var p placement
	cmd := &cobra.Command{
		Use:   "managers [OPTIONS] HOST:PORT [HOST:PORT…]",
		Short: "Tell this node at which addresses its cluster's managers are now",
		Long: "Tell this node at which addresses its cluster's managers are now, when none has one that it knows: after a restore on other machines,\n" +
			"or when all of them got other addresses at once. On a manager, name another one: they find each other, and their own nodes follow.\n\n" +
			"One of them must answer, with a certificate of this cluster. The daemon starts anew; containers run on.",
		Example: "  skep node managers 192.168.56.101:2377",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p.resolve(cmd)
			ctx, cancel := context.WithTimeout(cmd.Context(), startLimit)
			defer cancel()
			return p.turnTo(ctx, cmd, args)
		},
	}
	p.add(cmd)
	return cmd
}

func (p *placement) turnTo(ctx context.Context, cmd *cobra.Command, addrs []string) error {
	rec, err := Load(p.paths)
	if err != nil {
		return err
	}
	store, err := pki.Open(p.paths.Certs())
	if err != nil {
		return fmt.Errorf("read the node's certificate: %w", err)
	}
	for i, a := range addrs {
		if _, _, err := net.SplitHostPort(a); err != nil {
			addrs[i] = net.JoinHostPort(a, strconv.Itoa(DefaultPort))
		}
		host := member.HostOf(addrs[i])
		if ip, err := netip.ParseAddr(host); rec.Votes() && (host == rec.Host() || err == nil && isHere(ip)) {
			return fault.Usage("%s is this manager's own address: name another one's", addrs[i])
		}
	}
	var errs []error
	for _, a := range addrs {
		if errs = append(errs, reaches(ctx, a, store)); errs[len(errs)-1] == nil {
			break
		}
	}
	if err := errs[len(errs)-1]; err != nil {
		return fault.Unavailable("no manager of this node's cluster answers there; nothing was changed: %v", errors.Join(errs...))
	}
	_, err = member.Update(p.paths, func(r *Record) {
		if r.Votes() {
			r.Told = addrs
		} else {
			r.Managers = addrs
		}
	})
	if err != nil {
		return err
	}
	if h := member.Holders(p.paths); len(h) > 0 {
		plain.Fprintf(cmd.OutOrStdout(), "This node turns to %s once its services were started again: %s.\n", strings.Join(addrs, ", "), strings.Join(h, ", "))
		return nil
	}
	if err := p.startAgain(ctx); err != nil {
		return fmt.Errorf("start the node again: %w", err)
	}
	plain.Fprintf(cmd.OutOrStdout(), "This node turns to %s.\n", strings.Join(addrs, ", "))
	return nil
}

// routesAt are the addresses for other managers of those that listen for nodes at addrs: the next port.
func routesAt(addrs []string) (out []string) {
	for _, a := range addrs {
		host, port, err := net.SplitHostPort(a)
		if n, perr := strconv.Atoi(port); err == nil && perr == nil {
			out = append(out, net.JoinHostPort(host, strconv.Itoa(n+1)))
		}
	}
	return out
}

// reaches reports whether a manager of the node's own cluster listens at an address.
func reaches(ctx context.Context, addr string, store *pki.Store) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := (&tls.Dialer{Config: pki.ClientTLS(store)}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("%s: %w", addr, err)
	}
	return c.Close()
}

// startAgain ends the daemon, if it runs, and starts it. Containers do not notice.
func (p *placement) startAgain(ctx context.Context) error {
	if underSystemd(p.paths) {
		// A daemon that failed a few times in a row is not started any more until this was said.
		_ = exec.CommandContext(ctx, "systemctl", "reset-failed", unit).Run() // of one that did not fail it fails
		if out, err := exec.CommandContext(ctx, "systemctl", "restart", unit).CombinedOutput(); err != nil {
			return plain.Errorf("restart %s: %w\n%w", unit, err, lines(strings.Split(strings.TrimSpace(string(out)), "\n")))
		}
		return awaitReady(ctx, p.paths, nil)
	}
	if _, err := Running(ctx, p.paths); err == nil {
		text, err := os.ReadFile(p.paths.PID())
		if err != nil {
			return fmt.Errorf("find the daemon's process: %w", err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			return fmt.Errorf("find the daemon's process: %w", err)
		}
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("end the daemon (pid %d): %w", pid, err)
		}
	}
	for {
		release, err := member.HoldNode(p.paths)
		if err == nil {
			release()
			return p.launch(ctx)
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}
