package state

const (
	// Events one node causes: a node that starts thousands of tasks tells a few dozen a report and the rest together.
	// With eventText, one node alone needs two days to push out what is kept of all.
	nodeEventsPerSec = 2
	nodeEventsAtOnce = 500
	// What it tells of people's requests, apart from the above: tasks that come and go must not hide who was at them. With
	// this too it needs a day and a third.
	toldPerSec = 1
	toldAtOnce = 200
	eventText  = 256 // bytes of a task's message and error in an event
	// Descriptions of one node that say something new; each is a write and an event.
	describesPerSec = 1
	describesAtOnce = 20
)
