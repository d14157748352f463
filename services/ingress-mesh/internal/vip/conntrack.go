package vip

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// flows deletes the tracked connections for which it returns true.
type flows func(from, to netip.Addr, f *netlink.ConntrackFlow) bool

// MatchConntrackFlow implements the library's interface. An address that was asked for and another one that answers
// are those of a flow that was translated.
func (m flows) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	asked, ok := netip.AddrFromSlice(f.Forward.DstIP)
	answers, ok2 := netip.AddrFromSlice(f.Reverse.SrcIP)
	return ok && ok2 && m(asked.Unmap(), answers.Unmap(), f)
}

func deleteFlows(ns netns.NsHandle, path string, family int, m flows) (err error) {
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("open connection tracking in namespace %s: %w", path, err)
	}
	defer h.Close()
	for range 3 { // a table that changes while it is listed may be listed with gaps
		_, err = h.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.InetFamily(family), m)
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("delete tracked connections in namespace %s: %w", path, err)
	}
	return nil
}

func familiesOf(list []netip.Addr) (four, six bool) {
	for _, a := range list {
		four, six = four || a.Unmap().Is4(), six || a.Unmap().Is6()
	}
	return four, six
}

// Clear ends the flows from virtual addresses to tasks that have left or are lost: without that, a client that does not
// stop sending would stay with the task it was given first. TCP (and SCTP) connections to a task that left end with it, and
// until then go on; they are left alone. Those to one that is lost have nobody to end them: the next segment is given a
// task anew, which knows no such connection and resets it.
func Clear(path string, left, lost []netip.Addr) (err error) {
	if len(left)+len(lost) == 0 {
		return nil
	}
	c, err := open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	if n, err := c.tracked(); err != nil || n == 0 {
		return err
	}
	gone := make(map[netip.Addr]bool, len(left)+len(lost)) // and whether it is lost
	for _, a := range left {
		gone[a.Unmap()] = false
	}
	for _, a := range lost {
		gone[a.Unmap()] = true
	}
	match := func(asked, answers netip.Addr, f *netlink.ConntrackFlow) bool {
		all, is := gone[answers]
		p := f.Forward.Protocol
		return is && asked != answers && (all || p != unix.IPPROTO_TCP && p != unix.IPPROTO_SCTP)
	}
	four, six := familiesOf(slices.Concat(left, lost))
	if four {
		err = deleteFlows(c.ns, path, unix.AF_INET, match)
	}
	if six {
		err = errors.Join(err, deleteFlows(c.ns, path, unix.AF_INET6, match))
	}
	return err
}

// Of the kernel's linux/netfilter/nfnetlink_conntrack.h.
const (
	msgConntrackStats  = 5 // IPCTNL_MSG_CT_GET_STATS
	attrConntrackCount = 1 // CTA_STATS_GLOBAL_ENTRIES
	netlinkAck         = unix.NLM_F_ACK
)

// tracked counts the namespace's connections. With none, a dump is spared, which walks the table of the whole machine.
func (c *conn) tracked() (uint32, error) {
	// The answer says that more parts follow, and none does: the acknowledgement ends it.
	n, err := c.ask(unix.NFNL_SUBSYS_CTNETLINK, msgConntrackStats, attrConntrackCount, netlinkAck)
	if err != nil {
		return 0, fmt.Errorf("count the tracked connections in namespace %s: %w", c.path, err)
	}
	return n, nil
}

// forgetUntranslated ends the flows to addresses that were no virtual ones when the flow began: it is never asked
// again where its packets go.
func (c *conn) forgetUntranslated(opened [2][]string) (err error) {
	if len(opened[0])+len(opened[1]) == 0 {
		return nil
	}
	if n, err := c.tracked(); err != nil || n == 0 {
		return err
	}
	for i, family := range []int{unix.AF_INET, unix.AF_INET6} {
		if len(opened[i]) == 0 {
			continue
		}
		now := make(map[string]bool, len(opened[i]))
		for _, k := range opened[i] {
			now[k] = true
		}
		err = errors.Join(err, deleteFlows(c.ns, c.path, family, func(asked, answers netip.Addr, _ *netlink.ConntrackFlow) bool {
			return asked == answers && now[string(asked.AsSlice())]
		}))
	}
	return err
}
