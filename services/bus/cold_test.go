package bus

import (
	"testing"

	"skep.dev/libs/id"
	"skep.dev/libs/pki/pkitest"
)

// Ready means that streams can be made, at once and every time.
func TestReadyBusPlacesStreams(t *testing.T) {
	ca := pkitest.NewCA(t)
	for range 5 {
		b := run(t, lone(t, ca, id.New()))
		_, js := inProcessJS(t, b, "manager")
		if err := created(t, js, "a"); err != nil {
			t.Error(err)
		}
		b.Close()
	}
}
