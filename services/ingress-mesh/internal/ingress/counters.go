package ingress

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"skep.dev/services/ingress-mesh/internal/nsfs"
)

// Counters reads the published ports and how many connections each of them and of their backends got. It is Ports
// without all that a picture of the whole ruleset takes: three sets are read and nothing else, so it may be asked every
// few seconds. What changes meanwhile may be missing.
func (p *Plane) Counters(ctx context.Context) (out []PortState, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("read the counters of published ports: %w", err)
	}
	if p.cleaned {
		return nil, nil
	}
	err = nsfs.Inside(p.home, func() error {
		for range 3 {
			if out, err = readCounters(); !errors.Is(err, unix.EINTR) { // changed while it was read
				return err
			}
		}
		return err
	})
	return out, err
}

func readCounters() (out []PortState, err error) {
	c, err := openNftables()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.CloseLasting()) }()
	s := snapshot{host: emptyTable()}
	for _, set := range []string{setPorts, setBackends, setRefused} {
		if s.host.sets[set], err = readElements(c, hostTable, set); errors.Is(err, unix.ENOENT) {
			return nil, nil // nothing is published yet
		} else if err != nil {
			return nil, err
		}
	}
	return portStates(s), nil
}

// Stats counts since the start.
type Stats struct {
	// Mended is what was found to differ from the last Apply, because somebody else changed it, and put right.
	Mended uint64
}

// Stats gives the counts.
func (p *Plane) Stats() Stats { return Stats{Mended: p.mended.Load()} }
