package bus

import "errors"

// ErrRetired ends Manager.Run once the group of managers has let this node go: its server left the group, its store and
// group.json are gone. What the node is now says state (api.StateManagers); the role may follow some seconds later.
var ErrRetired = errors.New("this node's broker left the group of managers; its store was removed")

// ErrRefused ends Manager.Run when the managers do not let this node in and waiting mends nothing. The text says why.
var ErrRefused = errors.New("the managers do not let this node in")

// ErrOver ends Manager.Run when the cluster was founded anew, or restored, without this manager.
var ErrOver = errors.New("the cluster was founded anew without this manager: its store is of a cluster that is over")

// ErrDuplicate ends Manager.Run when another machine is there under this node's name. The text says where both are.
var ErrDuplicate = errors.New("another machine runs as this manager")

// StartsAgain reports whether what ended Manager.Run asks for the next Run at once.
func StartsAgain(err error) bool { return errors.Is(err, ErrAsked) || errors.Is(err, ErrStore) }

// ErrStore ends Manager.Run when the server has stopped its store, for a full disk, and there is room again: run again, it works.
var ErrStore = errors.New("the store of this manager had stopped: its broker starts again")

// ErrAsked ends Manager.Run when the cluster is to be founded anew (AskRefound): run again, it is.
var ErrAsked = errors.New("the cluster is to be founded anew by this manager: its broker starts again, alone")

var errStopped = errors.New("the bus does not run")
