package mesh

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	skepv1 "skep.dev/proto/skep/v1"
)

const (
	// nearlyFull is from which share of its size, in percent, the table is worth a word.
	nearlyFull = 90
	// fullFor is how long a full table is told of after its last dropped packet: who looks for the cause of a failure
	// comes later.
	fullFor = 30 * time.Second
)

// tracking watches the host's table of tracked connections, without room in which the kernel drops the first packet of
// every connection the node takes or makes, ours and the data path's included. Tasks have tables of their own, of the same size.
type tracking struct {
	proc string // "/proc"

	mu      sync.Mutex
	seen    bool
	drops   uint64 // when looked at last
	lost    uint64 // packets, since the table was found full
	fullAt  time.Time
	said    fillState
	verdict tableState
}

// tableState is the table at one look.
type tableState struct {
	count, max uint64
	drops      uint64 // packets the kernel dropped for want of room and otherwise, since the boot
	fill       fillState
	lost       uint64 // packets, since the table was found full
}

type fillState int

const (
	roomy fillState = iota
	tight
	full
)

func newTracking() *tracking { return &tracking{proc: "/proc"} }

// look reads the kernel's figures and judges them. Where there is no connection tracking, or none of this namespace's
// figures can be read, the table is roomy.
func (t *tracking) look(now time.Time) (tableState, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	count, err := readNumber(filepath.Join(t.proc, "sys/net/netfilter/nf_conntrack_count"))
	if err != nil {
		return tableState{}, err
	}
	most, err := readNumber(filepath.Join(t.proc, "sys/net/netfilter/nf_conntrack_max"))
	if err != nil {
		return tableState{}, err
	}
	drops, err := readDrops(filepath.Join(t.proc, "thread-self/net/stat/nf_conntrack"))
	if err != nil {
		return tableState{}, err
	}
	v := tableState{count: count, max: most, drops: drops}
	crowded := most > 0 && count*100 >= most*nearlyFull
	fresh := uint64(0)
	if t.seen && drops > t.drops {
		fresh = drops - t.drops
	}
	t.seen, t.drops = true, drops
	// The kernel drops for other reasons too: only with little room left it was for want of it.
	if crowded && (fresh > 0 || count >= most) {
		t.fullAt = now
		t.lost += fresh
	}
	switch {
	case !t.fullAt.IsZero() && now.Sub(t.fullAt) < fullFor:
		v.fill, v.lost = full, t.lost
	case crowded:
		v.fill = tight
	}
	if v.fill != full {
		t.fullAt, t.lost = time.Time{}, 0
	}
	t.verdict = v
	return v, nil
}

// turned says whether the verdict is another one than when it was asked last.
func (t *tracking) turned() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	was := t.said
	t.said = t.verdict.fill
	return was != t.said
}

// text is what is wrong and what to do, "" when there is room.
func (v tableState) text() string {
	raise := fmt.Sprintf("raise it with `sysctl -w net.netfilter.nf_conntrack_max=%d` and in /etc/sysctl.d, or find who opens so many connections (conntrack -L)", 2*v.max)
	switch v.fill {
	case full:
		what := ""
		if v.lost > 0 {
			what = fmt.Sprintf(", %d packets dropped", v.lost)
		}
		return fmt.Sprintf("conntrack table full: %d of %d connections tracked%s; new connections through this node fail: %s", v.count, v.max, what, raise)
	case tight:
		return fmt.Sprintf("conntrack table nearly full: %d of %d connections tracked; when it is full new connections fail: %s", v.count, v.max, raise)
	}
	return ""
}

// watchTable looks and says in the log when the table fills up, is full, and has room again.
func (s *Service) watchTable() {
	v, err := s.tracking.look(time.Now())
	if err != nil {
		s.log.Debug("look at the table of tracked connections", zap.Error(err))
		return
	}
	if !s.tracking.turned() {
		return
	}
	at := []zap.Field{zap.Uint64("count", v.count), zap.Uint64("max", v.max)}
	switch v.fill {
	case full:
		s.log.Error(v.text(), at...)
	case tight:
		s.log.Warn(v.text(), at...)
	default:
		s.log.Info("the conntrack table has room again", at...)
	}
}

// tableFinding adds the table to what is wrong on this node.
func (s *Service) tableFinding(out *skepv1.MeshStateReply) {
	v, err := s.tracking.look(time.Now())
	if err != nil || v.fill == roomy {
		return // it cannot be read here, so there is nothing to say
	}
	severity := severityWarning
	if v.fill == full {
		severity = severityError
	}
	out.Findings = append(out.Findings, &skepv1.MeshFinding{Severity: severity, Subject: "connection tracking", Text: v.text()})
}

// readNumber is a file's number, 0 where there is no such file.
func readNumber(path string) (uint64, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read connection tracking: %w", err)
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read connection tracking: %s: %w", path, err)
	}
	return n, nil
}

// readDrops adds up the column "drop" of each processor's line, 0 on a kernel without that file.
func readDrops(path string) (sum uint64, err error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read connection tracking: %w", err)
	}
	column := -1
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if column < 0 {
			for i, name := range f {
				if name == "drop" {
					column = i
				}
			}
			if column < 0 {
				return 0, nil
			}
			continue
		}
		if column < len(f) {
			n, perr := strconv.ParseUint(f[column], 16, 64)
			err = cmp.Or(err, perr)
			sum += n
		}
	}
	if err != nil {
		return 0, fmt.Errorf("read connection tracking: %s: %w", path, err)
	}
	return sum, nil
}
