package ingress

import (
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"

	"github.com/coreos/go-iptables/iptables"
	"go.uber.org/zap"
)

// forwardChain is our chain in the host's iptables filter table, so that a policy DROP of docker or ufw does not stop
// tasks' traffic. A verdict of another nftables table cannot be overruled that way: see foreignFindings.
const forwardChain = "SKEP-FORWARD"

var forwardJump = []string{"-j", forwardChain}

// forwardRules: tasks out, what the mesh brings in, and replies.
func (p *Plane) forwardRules() [][]string {
	states := []string{"-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED,DNAT", "-j", "ACCEPT"}
	return [][]string{
		{"-i", p.cfg.Bridge, "-j", "ACCEPT"},
		{"-i", Link, "-j", "ACCEPT"},
		append([]string{"-o", p.cfg.Bridge}, states...),
		append([]string{"-o", Link}, states...),
	}
}

// firewall is iptables or ip6tables.
type firewall struct {
	*iptables.IPTables
	name string
	six  bool
}

// openFirewalls returns none where there is no iptables: then there is no policy of its to overrule either.
func openFirewalls(log *zap.Logger) (out []firewall, err error) {
	for _, f := range []firewall{{name: "iptables"}, {name: "ip6tables", six: true}} {
		family := iptables.ProtocolIPv4
		if f.six {
			family = iptables.ProtocolIPv6
		}
		f.IPTables, err = iptables.New(iptables.IPFamily(family), iptables.Timeout(10)) // seconds for the lock others may hold
		if err == nil && f.six {
			_, err = f.ListChains("filter") // a kernel without IPv6 has no such table
		}
		switch {
		case errors.Is(err, exec.ErrNotFound):
		case err != nil && f.six:
			log.Debug("no ip6tables on this host", zap.Error(err))
		case err != nil:
			return nil, fmt.Errorf("open %s: %w", f.name, err)
		default:
			out = append(out, f)
		}
	}
	return out, nil
}

// overNftables reports whether iptables is the kind that writes nftables, whose changes generation shows.
func overNftables() bool {
	out, err := exec.Command("iptables", "--version").Output()
	return err == nil && strings.Contains(string(out), "nf_tables")
}

func (p *Plane) forwardSteps() (out []step, err error) {
	for _, f := range p.firewalls {
		if f.six && !p.ipv6 {
			continue
		}
		more, err := p.firewallSteps(f)
		if err != nil {
			return nil, err
		}
		out = append(out, more...)
	}
	return out, nil
}

func (p *Plane) firewallSteps(ipt firewall) ([]step, error) {
	var out []step
	want := []string{"-N " + forwardChain}
	for _, r := range p.forwardRules() {
		want = append(want, "-A "+forwardChain+" "+strings.Join(r, " "))
	}
	have, err := ipt.List("filter", forwardChain)
	if err != nil && !missingChain(err) {
		return nil, fmt.Errorf("list %s chain %s: %w", ipt.name, forwardChain, err)
	}
	if err != nil || !slices.Equal(have, want) {
		out = append(out, step{ipt.name + " chain " + forwardChain + " is missing or has other rules", func() error { return p.writeForward(ipt) }})
	}
	forward, err := ipt.List("filter", "FORWARD")
	if err != nil {
		return nil, fmt.Errorf("list %s chain FORWARD: %w", ipt.name, err)
	}
	if !slices.Contains(forward, "-A FORWARD "+strings.Join(forwardJump, " ")) {
		out = append(out, step{ipt.name + " chain FORWARD does not jump to " + forwardChain, func() error {
			if err := ipt.Insert("filter", "FORWARD", 1, forwardJump...); err != nil {
				return fmt.Errorf("jump from %s chain FORWARD to %s: %w", ipt.name, forwardChain, err)
			}
			return nil
		}})
	}
	return out, nil
}

// writeForward fills the chain in the order of forwardRules. Rules are put in before others are taken out, so that no
// packet meets an empty chain.
func (p *Plane) writeForward(ipt firewall) error {
	ok, err := ipt.ChainExists("filter", forwardChain)
	if err == nil && !ok {
		err = ipt.NewChain("filter", forwardChain)
	}
	if err != nil {
		return fmt.Errorf("make %s chain %s: %w", ipt.name, forwardChain, err)
	}
	rules := p.forwardRules()
	for i, r := range rules {
		if err := ipt.Insert("filter", forwardChain, i+1, r...); err != nil {
			return fmt.Errorf("add rule %q to %s chain %s: %w", r, ipt.name, forwardChain, err)
		}
	}
	for {
		have, err := ipt.List("filter", forwardChain)
		if err != nil {
			return fmt.Errorf("list %s chain %s: %w", ipt.name, forwardChain, err)
		}
		if len(have) <= len(rules)+1 { // the first line declares the chain
			return nil
		}
		if err := ipt.DeleteById("filter", forwardChain, len(rules)+1); err != nil {
			return fmt.Errorf("remove an old rule of %s chain %s: %w", ipt.name, forwardChain, err)
		}
	}
}

func missingChain(err error) bool {
	var e *iptables.Error
	return errors.As(err, &e) && (e.IsNotExist() || e.ExitStatus() == 1)
}

func (p *Plane) removeForward() (err error) {
	for _, f := range p.firewalls {
		err = errors.Join(err, f.removeForward())
	}
	return err
}

func (ipt firewall) removeForward() error {
	ok, err := ipt.ChainExists("filter", forwardChain)
	if err != nil || !ok {
		return err
	}
	for {
		// Without the chain, asking for the jump is itself an error.
		ok, err := ipt.Exists("filter", "FORWARD", forwardJump...)
		if err != nil {
			return fmt.Errorf("look for the jump to %s chain %s: %w", ipt.name, forwardChain, err)
		}
		if !ok {
			break
		}
		if err := ipt.Delete("filter", "FORWARD", forwardJump...); err != nil {
			return fmt.Errorf("remove the jump to %s chain %s: %w", ipt.name, forwardChain, err)
		}
	}
	if err := ipt.ClearAndDeleteChain("filter", forwardChain); err != nil {
		return fmt.Errorf("remove %s chain %s: %w", ipt.name, forwardChain, err)
	}
	return nil
}
