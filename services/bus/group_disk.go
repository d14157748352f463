package bus

import (
	"time"

	"go.uber.org/zap"

	"skep.dev/libs/diskspace"
)

// roomAgain is how much of the disk must be free before a store that stopped for want of it starts again, in bytes.
const roomAgain = 64 << 20

// storeStopped looks whether the server has stopped its store, which it does at the first write that finds the disk full, and
// never undoes: of three managers whose disks were full one after the other, two would be without a store for good. It ends the
// broker, which then starts again, once there is room.
func (g *group) storeStopped() {
	main := g.b.running()
	if main == nil || !main.Running() || main.JetStreamEnabled() {
		return
	}
	free, _, err := diskspace.Of(g.b.cfg.DataDir)
	if err == nil && free >= roomAgain {
		g.log.Warn("the store of this manager stopped, and its disk has room: the broker starts again", zap.Uint64("free", free))
		g.finish(ErrStore)
		return
	}
	if time.Since(g.toldFull) > sayEvery {
		g.toldFull = time.Now()
		g.log.Error("the store of this manager stopped: its disk is full. It starts again by itself once there is room",
			zap.String("dir", g.b.cfg.DataDir), zap.Uint64("free", free), zap.Uint64("needs", roomAgain), zap.Error(err))
	}
}
