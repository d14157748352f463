// Package partition holds the times by which a node that lost its managers and the managers that lost it agree about tasks
// of services with --on-partition stop: the node has ended them before they are given to others.
//
// A node counts from the moment at which it began to ask, of the last question that a manager which knew the newest records
// answered, on its own clock that also runs while the machine sleeps. After Silence it stops such tasks. An answer given after
// the node was declared down says so and counts for nothing. So the node begins to stop at most Silence after that verdict,
// and after what the Margin covers. Managers wait from the verdict for Silence, the task's grace period and the Margin.
package partition

import "time"

const (
	// Election is outlasted by the silence: tasks shall not end because the managers choose a leader (4 to 9 s).
	Election = 12 * time.Second
	// Margin covers what neither side can measure: a store's leader that was cut off answers for up to 10 s; the kill after the
	// grace period takes up to 5 s; managers' clocks may differ by up to 5 s; an agent that was killed is back within 5 s.
	Margin = 25 * time.Second
)

// Silence is how long a node hears no manager before it stops such tasks. period is that of heartbeats.
func Silence(period time.Duration) time.Duration { return Election + 3*period }

// Hold is how long after its node was declared down such a task is not begun elsewhere. grace is between its signal and the kill.
func Hold(period, grace time.Duration) time.Duration { return Silence(period) + grace + Margin }
