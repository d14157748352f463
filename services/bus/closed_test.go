package bus

import (
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"skep.dev/libs/id"
	"skep.dev/libs/pki/pkitest"
)

// Of connections that ended a few are remembered, and none among the guests: a command is a connection, and there are
// thousands of them in a day.
func TestEndedConnectionsAreForgotten(t *testing.T) {
	b := run(t, lone(t, pkitest.NewCA(t), id.New()))
	const many = 4 * closedClients
	main := b.running()
	open := func() int {
		v, err := main.Connz(&server.ConnzOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return v.Total
	}
	before := open()
	for range many {
		nc, err := b.InProcess("manager")
		if err != nil {
			t.Fatal(err)
		}
		nc.Close()
	}
	if err := await(t.Context(), 5*time.Millisecond, patience, func() bool { return open() <= before }); err != nil {
		t.Fatal(err)
	}
	v, err := main.Connz(&server.ConnzOptions{State: server.ConnClosed})
	if err != nil {
		t.Fatal(err)
	}
	if v.Total == 0 || v.Total > closedClients {
		t.Errorf("the broker remembers %d of %d connections that ended, want at most %d", v.Total, many, closedClients)
	}
}
