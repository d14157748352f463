package ingress

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
)

// tableState is a table of ours as the kernel has it.
type tableState struct {
	flags  uint32
	chains map[string]*nftables.Chain
	rules  map[string][]string // by chain: the rules' comments
	sets   map[string]elements
}

func emptyTable() *tableState {
	return &tableState{chains: map[string]*nftables.Chain{}, rules: map[string][]string{}, sets: map[string]elements{}}
}

// snapshot is what nftables holds of ours. A table that is not there is nil.
type snapshot struct {
	generation   uint32
	host, fabric *tableState
	zones        []string          // comments of the rules of inet skep_zones, nil if it is not there
	foreign      []*nftables.Chain // chains of others that forwarded packets meet
}

// backends are those the kernel has, by port.
func (s snapshot) backends() backends {
	if s.host == nil {
		return backends{}
	}
	return backends{slotsOf(s.host.sets[setBackends]), slotsOf(s.host.sets[setBackends6])}
}

// bigBuffers: a transaction of thousands of elements is one message to the kernel, and each part of it is answered.
func bigBuffers(c *netlink.Conn) error {
	return errors.Join(c.SetReadBuffer(32<<20), c.SetWriteBuffer(32<<20))
}

func openNftables() (*nftables.Conn, error) {
	c, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(bigBuffers))
	if err != nil {
		return nil, fmt.Errorf("open nftables (is the kernel built with nf_tables?): %w", err)
	}
	return c, nil
}

// readSnapshot reads it all; when somebody changes the ruleset meanwhile, what was read does not belong together and
// is read again.
func (p *Plane) readSnapshot() (snapshot, error) {
	for range 10 {
		before, err := p.ruleset()
		if err != nil {
			return snapshot{}, err
		}
		s, err := readOnce()
		after, again := p.ruleset()
		if again != nil {
			return snapshot{}, again
		}
		if before == after {
			s.generation = before
			return s, err
		}
	}
	return snapshot{}, errors.New("read nftables: the ruleset changes all the time (see `nft monitor`)")
}

func readOnce() (s snapshot, err error) {
	c, err := openNftables()
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, c.CloseLasting()) }()
	tables, err := c.ListTables()
	if err != nil {
		return s, fmt.Errorf("list nftables tables: %w", err)
	}
	for _, t := range tables {
		switch {
		case t.Family == hostTable.Family && t.Name == hostTable.Name:
			s.host = emptyTable()
			s.host.flags = t.Flags
		case t.Family == fabricTable.Family && t.Name == fabricTable.Name:
			s.fabric = emptyTable()
			s.fabric.flags = t.Flags
		}
	}
	chains, err := c.ListChains()
	if err != nil {
		return s, fmt.Errorf("list nftables chains: %w", err)
	}
	for _, ch := range chains {
		switch {
		case ch.Table.Family == hostTable.Family && ch.Table.Name == hostTable.Name && s.host != nil:
			s.host.chains[ch.Name] = ch
		case ch.Table.Family == fabricTable.Family && ch.Table.Name == fabricTable.Name && s.fabric != nil:
			s.fabric.chains[ch.Name] = ch
		case ch.Table.Family == zonesTable.Family && ch.Table.Name == zonesTable.Name:
			if s.zones != nil {
				continue // all of it was read with its first chain
			}
			if s.zones, err = readZones(); err != nil {
				return s, err
			}
		case ch.Hooknum != nil && ch.Policy != nil:
			s.foreign = append(s.foreign, ch)
		}
	}
	return s, errors.Join(s.host.read(c, hostTable), s.fabric.read(c, fabricTable))
}

func (s *tableState) read(c *nftables.Conn, t *nftables.Table) error {
	if s == nil {
		return nil
	}
	for name := range s.chains {
		r, err := readRules(c, t, name)
		if err != nil {
			return err
		}
		s.rules[name] = r
	}
	sets, err := c.GetSets(t)
	if err != nil {
		return fmt.Errorf("list the sets of nftables table %s: %w", t.Name, err)
	}
	for _, set := range sets {
		if set.Anonymous {
			continue
		}
		if s.sets[set.Name], err = readElements(c, t, set.Name); err != nil {
			return err
		}
	}
	return nil
}

func readRules(c *nftables.Conn, t *nftables.Table, chain string) ([]string, error) {
	rules, err := c.GetRules(t, &nftables.Chain{Name: chain})
	if err != nil {
		return nil, fmt.Errorf("list the rules of nftables chain %s %s: %w", t.Name, chain, err)
	}
	out := []string{}
	for _, r := range rules {
		out = append(out, string(r.UserData))
	}
	return out, nil
}

func readElements(c *nftables.Conn, t *nftables.Table, set string) (elements, error) {
	list, err := c.GetSetElements(&nftables.Set{Table: t, Name: set})
	if err != nil {
		return nil, fmt.Errorf("list nftables set %s %s: %w", t.Name, set, err)
	}
	out := make(elements, len(list))
	for _, e := range list {
		out[string(e.Key)] = elementOf(e, set)
	}
	return out, nil
}
