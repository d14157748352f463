package bus

import "errors"

// ErrRetired ends Manager.Run once the group of managers has let this node go: its server left the group, its store and
// group.json are gone. What the node is now says state (api.StateManagers); the role may follow some seconds later.
var ErrRetired = errors.New("this node's broker left the group of managers; its store was removed")

// ErrRefused ends Manager.Run when the managers do not let this node in and waiting mends nothing. The text says why.
var ErrRefused = errors.New("the managers do not let this node in")

// ErrOver ends Manager.Run when the cluster was founded anew, or restored, without this manager.
var ErrOver = errors.New("the cluster was founded anew without this manager: its store is of a cluster that is over")

var errStopped = errors.New("the bus does not run")
