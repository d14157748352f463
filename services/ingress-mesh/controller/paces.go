package controller

import "time"

const (
	// A node's part of a network changes by its request when it comes, goes, or renews its key: paceBurst times at once,
	// then once in paceEvery. Each change goes to all nodes of the network, and a new key ends their sessions with it.
	paceEvery = 5 * time.Second
	paceBurst = 4
	// A node's records are written after its reports: reportBurst times at once, then once in reportEvery. Each write goes to
	// every node that follows the network. An honest node reports ten times a second at most, and not for long.
	reportEvery = 50 * time.Millisecond
	reportBurst = 100
)
