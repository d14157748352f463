// Package reconcile decides what should become of every task: State is the scheduler's compact picture of the
// cluster, Plan compares it with what users asked for and answers with changes. Pure: no I/O, no clock, no logging;
// the time and the source of identifiers are arguments, every change can be printed.
//
// It owns the rules of tasks (ARCHITECTURE §4, docs/contracts.md "Rules of a task"): which exist, where they run,
// what is desired of them, restarts, rollouts and history. It refuses to judge nodes (health-monitor does) and to
// run anything (agents do).
//
// A service is a set of units, a slot of a replicated service or a node of a global one, and each unit is brought
// towards exactly one wanted task by the same small machine (unit.go). Nothing is remembered between plans except what
// the records say, so a plan may be cut short anywhere: the next one, by anyone, continues from the records.
// Changes that must never be seen apart are one Group; the committer writes a group in one atomic batch.
//
// Where Swarm is followed and where not: the restart delay is for tasks that ended, not for those whose node was lost
// or drained; a drain goes by the order of updates; an update prepares (pulls) the new task
// before it stops the old one and never stops an old task it cannot replace; a global task on a node that is down stays
// as it is until the node returns or is removed.
package reconcile
