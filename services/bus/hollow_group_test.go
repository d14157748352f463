package bus

import (
	"os"
	"slices"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// Two of three managers lost their disks and start first. They are a majority, and found nothing: they say whom they wait
// for. Nor does the one good copy serve without them; founding the cluster anew there (TestRefoundAndTheReturned) brings it back.
func TestAMajorityWithoutDataFoundsNothing(t *testing.T) {
	cfgs := oldGroup(t)
	core, logs := observer.New(zap.InfoLevel)
	for i := range cfgs {
		for _, other := range cfgs {
			if other.NodeID != cfgs[i].NodeID {
				cfgs[i].Managers = append(cfgs[i].Managers, other.Advertise)
			}
		}
	}
	var ends []chan error
	var all []*Manager
	for i := range 2 {
		if err := os.RemoveAll(cfgs[i].DataDir); err != nil {
			t.Fatal(err)
		}
		cfgs[i].Log = zap.New(core)
		m, _, ended := manage(t, cfgs[i])
		ends, all = append(ends, ended), append(all, m)
	}
	says := func(c Config) bool {
		return slices.ContainsFunc(logs.FilterMessage("waiting to be let into the group of managers").All(), func(e observer.LoggedEntry) bool {
			whom, _ := e.ContextMap()["managers"].([]any)
			return len(whom) == 2 && whom[0] == c.Managers[0] && whom[1] == c.Managers[1]
		})
	}
	for i := range 2 {
		if err := await(within(t), 10*time.Millisecond, patience, func() bool { return says(cfgs[i]) }); err != nil {
			t.Fatalf("it does not say that it waits for %v: %v", cfgs[i].Managers, logs.All())
		}
	}
	good, _, ended := manage(t, cfgs[2])
	ends, all = append(ends, ended), append(all, good)
	<-good.Serving()
	// Longer than an election takes.
	if err := await(within(t), 20*time.Millisecond, 2*electBefore, func() bool { return slices.ContainsFunc(all, func(m *Manager) bool { return m.led() }) }); err == nil {
		t.Error("a group without a majority of its copies has a leader")
	}
	for i := range 2 {
		if ok, err := hasStore(cfgs[i].DataDir); ok || err != nil {
			t.Errorf("a manager without data made a store: %v", err)
		}
	}
	for _, ended := range ends {
		select {
		case err := <-ended:
			t.Errorf("a manager does not wait: %v", err)
		default:
		}
	}
}
