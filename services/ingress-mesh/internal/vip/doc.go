// Package vip makes the virtual addresses of services work inside one task's network namespace: a connection to a
// virtual address is sent to a random task behind it by the namespace's own nftables, so there is no further hop and
// nothing of ours in the way of the packets. Any protocol is translated, so a ping is answered too.
//
// It owns the nftables table `inet skep_vip` in the namespaces it is given, and there the tracked connections that go
// elsewhere than the table says. It refuses to touch other tables, and to translate what the task forwards for others.
//
// How: a map leads from a virtual address to a chain that draws one of n, and a second map from address and number
// drawn to the task. There is one chain per *number* of tasks, not per service, so that the cost of a connection and
// the size of a change do not grow with the number of services. A packet that still has a virtual address as its
// destination after that is refused at once (TCP reset, ICMP port unreachable) if the service has no tasks, and dropped
// if it has: a change came in between, and TCP sends it again.
//
// Failure story: the kernel does the work, so a crash or a restart of the process is not noticed by a connection. Every
// Apply compares with the kernel and writes the difference, in an order in which each step is safe, so it can be repeated
// after a crash at any point; what somebody changed or flushed is put back by the next one. Tracked TCP connections keep the task they
// were given, whatever changes; for other protocols Clear ends the flows to tasks that have left.
package vip
