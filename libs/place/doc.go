// Package place decides where tasks run: filters that explain themselves, then a score. It is pure (no I/O, no clock,
// no logging) and built to place a million one-task services a second.
//
// It owns the choice of a node and nothing else: who needs a task, and why, is libs/reconcile's. An Engine is made
// from the nodes as they stand, used for one plan and thrown away; placing only ever consumes (loads grow, room
// shrinks), which is what makes its lazily updated heaps correct.
//
// The order of nodes for a service's next task:
//
//  1. nodes on which it failed FailureLimit times of late come last, fewest failures first;
//  2. with placement preferences, the branch of the spread tree with the fewest tasks of the service;
//  3. nodes without a task of the service, the least loaded first: (tasks+1) / free resources;
//  4. then nodes in proportion to their free resources: the smallest (tasks of the service+1) / free resources;
//  5. ties go to the node that comes first in the engine's (fixed) order.
//
// Free resources are CPU and memory not reserved, each relative to the cluster's average node, so that where nothing
// is reserved a node counts by its capacity.
//
// How it is fast: services that ask for the same things (constraints by their text, platforms, plugins, ports, a
// power-of-two class of reservations) share one class, whose nodes were filtered once and stand in a heap by load.
// A heap entry whose load is out of date is only ever too small, so it is corrected when it reaches the top.
package place
