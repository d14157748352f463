package bus

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.uber.org/zap"

	"skep.dev/libs/api"
	"skep.dev/libs/atomicfile"
	skepv1 "skep.dev/proto/skep/v1"
)

const (
	// asideDir has the store that was found damaged last. It is for people: nothing reads it.
	asideDir = "damaged"
	// goesOnFor is how long the others must have a majority without this one. It is longer than they take to notice that one of
	// them is gone: managers that are started together after a power failure are counted as there for seconds.
	goesOnFor = 7 * time.Second
	// asideNote says in it what was wrong.
	asideNote = "WHY"
	// copiesElsewhere is how many copies each stream has at least where this one can be done without.
	copiesElsewhere = 3
	// damagesTold is how many files are named.
	damagesTold = 5
)

// examine sums up the store before the server starts on it, and returns the place that this start goes by: the same when the store
// is whole. A damaged one is not served. Once a majority of the others goes on without it, it is moved aside, and this manager asks
// for a new place, with an empty store that is filled from theirs. Where its copy is the only one that is an error, and nothing is
// changed.
func (g *group) examine(ctx context.Context, p *Place) (*Place, error) {
	cfg := &g.b.cfg
	began := time.Now()
	found, err := damages(filepath.Join(cfg.DataDir, "main"))
	if err != nil {
		return nil, err
	}
	if took := time.Since(began); took > time.Second {
		g.log.Info("the store was checked before the start", zap.Duration("dur", took))
	}
	if len(found) == 0 {
		return p, nil
	}
	what := wrong(found)
	if p.set().GetReplicas() < copiesElsewhere {
		return nil, fmt.Errorf("start the broker %s: the store of this manager is damaged, and it may have the only copy: %s. Nothing of it is served, and nothing was changed. "+
			"Look at the disk (dmesg, smartctl -a). Then keep a copy of %s, and restore a backup on this machine (skep leave --force, then skep backup restore FILE); "+
			"without a backup, skep init --force-new-cluster goes on with what can still be read", p.Server, what, cfg.DataDir)
	}
	var said, since time.Time
	for {
		switch {
		case !g.goOn(ctx, p):
			since = time.Time{}
		case since.IsZero():
			since = time.Now()
		}
		if !since.IsZero() && time.Since(since) > goesOnFor {
			return g.replace(ctx, p, what)
		}
		if newer, addr := newerEpoch(ctx, cfg.TLS, g.others(p.set()), p.Epoch); newer != nil {
			return g.outlived(ctx, p, newer, addr)
		}
		if since.IsZero() && time.Since(said) > sayEvery {
			said = time.Now()
			g.log.Error("the store of this manager is damaged and is not served. It waits for a majority of the other managers, to be filled from theirs; "+
				"if they are lost for good, run skep init --force-new-cluster on one whose store is whole",
				zap.String("damage", what), zap.Strings("managers", g.others(p.set())))
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(askEvery):
		}
	}
}

// replace moves the damaged store aside and asks for a new place.
func (g *group) replace(ctx context.Context, p *Place, what string) (*Place, error) {
	to, err := setAside(g.b.cfg.DataDir, what)
	if err != nil {
		return nil, err
	}
	g.log.Error("the store of this manager is damaged: it was moved aside, and is filled anew from the other managers. Look at the disk (dmesg, smartctl -a)",
		zap.String("damage", what), zap.String("moved_to", to))
	return g.enlist(ctx, p.set())
}

// goOn reports whether the other managers have a majority without this one, by the word of one of them: a leader, and connections
// with more than half of those that vote. This one's broker has none.
func (g *group) goOn(ctx context.Context, p *Place) bool {
	ctx, cancel := context.WithTimeout(ctx, confirmFor)
	defer cancel()
	nc, err := g.dial(g.others(p.set()), time.Second)
	if err != nil {
		return false
	}
	defer nc.Close()
	list, err := api.Call(ctx, nc, api.ManagerList, &skepv1.Empty{})
	return err == nil && list.GetLed() && 2*list.GetPresent() > list.GetVoters() && list.GetSet().GetReplicas() >= copiesElsewhere
}

// wrong names the damaged files.
func wrong(found []damage) string {
	var text []string
	for _, d := range found[:min(len(found), damagesTold)] {
		text = append(text, d.String())
	}
	if more := len(found) - len(text); more > 0 {
		text = append(text, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(text, "; ")
}

// setAside moves the server's store to where nothing reads it, in place of one that was moved there before. A crash in between
// leaves a store to be moved, or none: both are found at the next start.
func setAside(dataDir, why string) (to string, err error) {
	to = filepath.Join(dataDir, asideDir)
	if err = os.RemoveAll(to); err == nil {
		err = os.MkdirAll(to, 0o700)
	}
	if err == nil {
		err = atomicfile.WriteSync(filepath.Join(to, asideNote), []byte(why+"\n"))
	}
	if err == nil {
		err = os.Rename(filepath.Join(dataDir, "main"), filepath.Join(to, "main"))
	}
	if err == nil {
		err = atomicfile.SyncDir(dataDir)
	}
	if err != nil {
		return "", fmt.Errorf("move the damaged store of this manager aside: %w", err)
	}
	return to, nil
}

// asideOf is the directory with a store that was moved aside, what was wrong with it and when that was; "" when there is none.
func asideOf(dataDir string) (dir, why string, at time.Time) {
	dir = filepath.Join(dataDir, asideDir)
	if _, err := os.Stat(filepath.Join(dir, "main")); err != nil {
		return "", "", time.Time{}
	}
	note := filepath.Join(dir, asideNote)
	text, err := os.ReadFile(note)
	if err != nil {
		return dir, "", time.Time{}
	}
	if st, err := os.Stat(note); err == nil {
		at = st.ModTime()
	}
	return dir, strings.TrimSpace(string(text)), at
}
