package conn

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// A connection that was cut without a word is noticed within ten seconds: when one ping more than may be open is due.
func TestASilentCutIsNoticed(t *testing.T) {
	o := nats.GetDefaultOptions()
	for _, set := range lasting(time.Second) {
		if err := set(&o); err != nil {
			t.Fatal(err)
		}
	}
	if after := o.PingInterval * time.Duration(o.MaxPingsOut+1); after > 10*time.Second {
		t.Errorf("it is noticed after %s", after)
	}
	if o.MaxReconnect != -1 {
		t.Error("it is given up")
	}
}
