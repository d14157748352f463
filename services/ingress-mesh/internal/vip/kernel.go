package vip

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// patience is for an answer that never comes, rather than for a slow one.
const patience = time.Minute

// conn speaks to netfilter in one namespace, from any thread.
type conn struct {
	path string
	ns   netns.NsHandle
	nl   *netlink.Conn
	nft  *nftables.Conn
}

func open(path string) (*conn, error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("open namespace %s: %w", path, err)
	}
	c := &conn{path: path, ns: ns}
	// A transaction of thousands of elements is one message to the kernel, and each part of it is answered.
	buffers := func(nl *netlink.Conn) error {
		c.nl = nl
		return errors.Join(nl.SetReadBuffer(8<<20), nl.SetWriteBuffer(32<<20), nl.SetDeadline(time.Now().Add(patience)))
	}
	c.nft, err = nftables.New(nftables.AsLasting(), nftables.WithNetNSFd(int(ns)), nftables.WithSockOptions(buffers))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open nftables in namespace %s: %w", path, err), ns.Close())
	}
	return c, nil
}

func (c *conn) close() error { return errors.Join(c.nft.CloseLasting(), c.ns.Close()) }

// cookie is a number the namespace alone has until the machine restarts, unlike its inode, which is used again.
func (c *conn) cookie() (cookie uint64, err error) {
	raw, err := c.nl.SyscallConn()
	if err == nil {
		err = errors.Join(raw.Control(func(fd uintptr) {
			cookie, err = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		}), err)
	}
	if err != nil {
		return 0, fmt.Errorf("tell namespace %s from others: %w", c.path, err)
	}
	return cookie, nil
}

// ask sends a request without arguments and gives the first 32-bit attribute of that type in the answer.
func (c *conn) ask(subsystem, message, attr uint16, flags netlink.HeaderFlags) (uint32, error) {
	replies, err := c.nl.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(subsystem<<8 | message), Flags: netlink.Request | flags},
		Data:   []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0},
	})
	if err != nil {
		return 0, err
	}
	for _, m := range replies {
		ad, err := netlink.NewAttributeDecoder(m.Data[min(4, len(m.Data)):])
		if err != nil {
			return 0, err
		}
		ad.ByteOrder = binary.BigEndian
		for ad.Next() {
			if ad.Type() == attr {
				return ad.Uint32(), nil
			}
		}
	}
	return 0, errors.New("the kernel did not say")
}

// generation is the version of the namespace's ruleset: it grows with every change anybody makes. While it stands
// still, what was compared before need not be compared again.
func (c *conn) generation() (uint32, error) {
	g, err := c.ask(unix.NFNL_SUBSYS_NFTABLES, unix.NFT_MSG_GETGEN, unix.NFTA_GEN_ID, 0)
	if err != nil {
		return 0, fmt.Errorf("read the version of the nftables ruleset in namespace %s: %w", c.path, err)
	}
	return g, nil
}

// read gives the table, nil if there is none, and the generation it was read at. When somebody changes the ruleset
// meanwhile, what was read does not belong together and is read again.
func (c *conn) read() (*kernelTable, uint32, error) {
	for range 10 {
		before, err := c.generation()
		if err != nil {
			return nil, 0, err
		}
		k, err := c.readOnce()
		after, again := c.generation()
		if again != nil {
			return nil, 0, again
		}
		if before == after {
			if err != nil {
				err = fmt.Errorf("read nftables table inet %s in namespace %s: %w", tableName, c.path, err)
			}
			return k, before, err
		}
	}
	return nil, 0, fmt.Errorf("read nftables table inet %s in namespace %s: the ruleset changes all the time (see `nft monitor`)", tableName, c.path)
}

func (c *conn) readOnce() (*kernelTable, error) {
	tables, err := c.nft.ListTablesOfFamily(table.Family)
	if err != nil {
		return nil, fmt.Errorf("look it up: %w", err)
	}
	var t *nftables.Table
	left := false
	for _, is := range tables {
		switch is.Name {
		case tableName:
			t = is
		case twin.Name:
			left = true
		}
	}
	switch {
	case t == nil && left:
		return &kernelTable{twin: true}, nil
	case t == nil:
		return nil, nil
	}
	k := &kernelTable{flags: t.Flags, twin: left, chains: map[string]*nftables.Chain{}, tags: map[string][]string{}, sets: map[string]elements{}}
	chains, err := c.nft.ListChainsOfTableFamily(table.Family)
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	for _, ch := range chains {
		if ch.Table.Name == tableName {
			k.chains[ch.Name] = ch
		}
	}
	for name := range k.chains {
		rules, err := c.nft.GetRules(table, &nftables.Chain{Name: name})
		if err != nil {
			return nil, fmt.Errorf("list the rules of chain %s: %w", name, err)
		}
		k.tags[name] = []string{}
		for _, r := range rules {
			k.tags[name] = append(k.tags[name], string(r.UserData))
		}
	}
	list, err := c.nft.GetSets(table)
	if err != nil {
		return nil, fmt.Errorf("list sets: %w", err)
	}
	for _, s := range list {
		elems, err := c.nft.GetSetElements(&nftables.Set{Table: table, Name: s.Name})
		if err != nil {
			return nil, fmt.Errorf("list set %s: %w", s.Name, err)
		}
		k.sets[s.Name] = readElements(s.Name, elems)
	}
	return k, nil
}

func readElements(set string, list []nftables.SetElement) elements {
	verdicts := set == families[0].services || set == families[1].services
	out := make(elements, len(list))
	for _, s := range list {
		e := element{val: string(s.Val), comment: s.Comment}
		if verdicts {
			e.val = chainOf(s.Val)
		}
		if s.Counter != nil {
			e.packets = s.Counter.Packets
		}
		out[string(s.Key)] = e
	}
	return out
}

// chainOf is where a verdict, which the library leaves as the kernel sent it, jumps to.
func chainOf(b []byte) string {
	ad, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return ""
	}
	ad.ByteOrder = binary.BigEndian
	jump, chain := false, ""
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_VERDICT_CODE:
			jump = int32(ad.Uint32()) == unix.NFT_JUMP
		case unix.NFTA_VERDICT_CHAIN:
			chain = string(bytes.TrimRight(ad.Bytes(), "\x00"))
		}
	}
	if !jump {
		return ""
	}
	return chain
}
