package mesh

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/coreos/go-iptables/iptables"
	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// tableName is our nftables table (family inet).
const tableName = "skep"

// forwardChain is our chain in the host's iptables filter table.
const forwardChain = "SKEP-FORWARD"

func table() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName}
}

// ensureTable makes the table whose postrouting chain hides the tasks' addresses behind the host's. It is replaced in
// one transaction when it is not as it should be; connections in progress keep their translation.
func ensureTable(subnet netip.Prefix) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	comment := []byte("skep egress " + subnet.String())
	if ok, err := tableIsRight(c, comment); err != nil || ok {
		return err
	}
	t := table()
	c.AddTable(t) // so that the removal below succeeds when there is none
	c.DelTable(t)
	c.AddTable(t)
	ch := c.AddChain(&nftables.Chain{
		Name: "postrouting", Table: t, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: masquerade(subnet), UserData: comment})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("load nftables table inet %s: %w", tableName, err)
	}
	return nil
}

func tableIsRight(c *nftables.Conn, comment []byte) (bool, error) {
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, fmt.Errorf("list nftables chains: %w", err)
	}
	for _, ch := range chains {
		if ch.Table.Name != tableName || ch.Name != "postrouting" {
			continue
		}
		rules, err := c.GetRules(ch.Table, ch)
		if err != nil {
			return false, fmt.Errorf("list the rules of inet %s: %w", tableName, err)
		}
		return len(rules) == 1 && slices.Equal(rules[0].UserData, comment), nil
	}
	return false, nil
}

// masquerade is: meta nfproto ipv4 ip saddr <subnet> oifname != "skep0" masquerade
func masquerade(subnet netip.Prefix) []expr.Any {
	n := ipNet(subnet)
	dev := make([]byte, unix.IFNAMSIZ)
	copy(dev, Bridge)
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.NFPROTO_IPV4}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: n.Mask, Xor: binaryutil.NativeEndian.PutUint32(0)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: n.IP.To4()},
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: dev},
		&expr.Masq{},
	}
}

func removeTable() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	t := table()
	c.AddTable(t)
	c.DelTable(t)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("remove nftables table inet %s: %w", tableName, err)
	}
	return nil
}

// forwardRules let tasks out and replies in, where the host's policy (docker's, ufw's) would drop forwarded packets.
var forwardRules = [][]string{
	{"-i", Bridge, "-j", "ACCEPT"},
	{"-o", Bridge, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"},
}

var forwardJump = []string{"-j", forwardChain}

func openIptables() (*iptables.IPTables, error) {
	ipt, err := iptables.New()
	if err != nil {
		return nil, fmt.Errorf("find iptables (install the package iptables): %w", err)
	}
	return ipt, nil
}

// ensureForward keeps our chain and the jump to it in the host's FORWARD chain.
func ensureForward() error {
	ipt, err := openIptables()
	if err != nil {
		return err
	}
	ok, err := ipt.ChainExists("filter", forwardChain)
	if err != nil {
		return fmt.Errorf("look for iptables chain %s: %w", forwardChain, err)
	}
	if !ok {
		if err := ipt.NewChain("filter", forwardChain); err != nil {
			return fmt.Errorf("make iptables chain %s: %w", forwardChain, err)
		}
	}
	if err := ensureForwardRules(ipt); err != nil {
		return err
	}
	if ok, err = ipt.Exists("filter", "FORWARD", forwardJump...); err == nil && !ok {
		err = ipt.Insert("filter", "FORWARD", 1, forwardJump...)
	}
	if err != nil {
		return fmt.Errorf("jump from FORWARD to %s: %w", forwardChain, err)
	}
	return nil
}

func ensureForwardRules(ipt *iptables.IPTables) error {
	for _, r := range forwardRules {
		if err := ipt.AppendUnique("filter", forwardChain, r...); err != nil {
			return fmt.Errorf("add rule %q to iptables chain %s: %w", r, forwardChain, err)
		}
	}
	have, err := ipt.List("filter", forwardChain)
	if err != nil {
		return fmt.Errorf("list iptables chain %s: %w", forwardChain, err)
	}
	if len(have) == len(forwardRules)+1 { // the first line declares the chain
		return nil
	}
	// Left by another version of ours: the chain is ours alone, so it is made anew.
	if err := ipt.ClearChain("filter", forwardChain); err != nil {
		return fmt.Errorf("clear iptables chain %s: %w", forwardChain, err)
	}
	for _, r := range forwardRules {
		if err := ipt.Append("filter", forwardChain, r...); err != nil {
			return fmt.Errorf("add rule %q to iptables chain %s: %w", r, forwardChain, err)
		}
	}
	return nil
}

func removeForward() error {
	ipt, err := openIptables()
	if err != nil {
		return err
	}
	var errs []error
	for {
		ok, err := ipt.Exists("filter", "FORWARD", forwardJump...)
		if err != nil || !ok {
			break // without our chain, asking for the jump is itself an error
		}
		if err := ipt.Delete("filter", "FORWARD", forwardJump...); err != nil {
			errs = append(errs, fmt.Errorf("remove the jump to %s: %w", forwardChain, err))
			break
		}
	}
	if ok, err := ipt.ChainExists("filter", forwardChain); err != nil {
		errs = append(errs, err)
	} else if ok {
		if err := ipt.ClearAndDeleteChain("filter", forwardChain); err != nil {
			errs = append(errs, fmt.Errorf("remove iptables chain %s: %w", forwardChain, err))
		}
	}
	return errors.Join(errs...)
}
