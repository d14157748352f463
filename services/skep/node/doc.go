// Package node assembles a node: `skep init` and `skep join` give a machine its identity and start the daemon,
// the daemon runs the node's whole set of services in one process, `skep leave` takes everything back.
//
// It owns <data-dir>/node.json, in the form of libs/member, and node.sock; every other file belongs to the service that
// wrote it. It refuses to run twice on one data directory, and beside services that run as processes of their own
// (--no-start).
//
// A node may become a manager or a worker while it runs: the managers' services come and go beside mesh and agent.
//
// Failure story: init and join write node.json last, so a half-done attempt leaves no membership behind and can be
// repeated. A daemon that dies is started again by systemd, or by hand; containers run on meanwhile, and the agent
// takes them up again.
package node
