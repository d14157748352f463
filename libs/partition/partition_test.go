package partition

import (
	"testing"
	"time"
)

// Whatever the period and the grace, the node has ended its task with the margin to spare before another may be begun, and it does not
// end it for an election (4 to 9 s).
func TestTheNodeIsFirst(t *testing.T) {
	for _, period := range []time.Duration{100 * time.Millisecond, time.Second, time.Minute} {
		for _, grace := range []time.Duration{0, 10 * time.Second, time.Hour} {
			if left := Hold(period, grace) - Silence(period) - grace; left < Margin {
				t.Errorf("period %s, grace %s: %s are left", period, grace, left)
			}
		}
		if Silence(period) < 10*time.Second {
			t.Errorf("period %s: it ends tasks after %s", period, Silence(period))
		}
	}
}
