package rpc

import (
	"context"
	"strings"

	"skep.dev/libs/subject"
)

// Asker names who asked for the change in work: a user's certificate, root on a manager, or a service. It is read off
// the inbox that the answer goes to, which only its owner can listen to.
func Asker(ctx context.Context) string {
	name := subject.InboxOwner(ReplyTo(ctx))
	switch {
	case name == "" || name == "local-root":
		return "root"
	case strings.HasPrefix(name, "scheduler-"):
		return "scheduler"
	}
	return name
}
