package doctor

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

var testNow = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

const day = 24 * time.Hour

// keep adds to a healthy cluster what its services say of themselves, and a secret and a config that its task has.
func keep(t *testing.T, p *Picture) {
	t.Helper()
	p.Now = testNow
	for _, n := range p.After.Nodes {
		certify(n, 90*day, 60*day)
	}
	p.Clocks = from(t, &skepv1.ClocksReply{}, `node_id: "id-m1" heard: 3`)
	p.Stores = []NodeStore{{Node: p.After.Nodes[0], State: from(t, &skepv1.StoreStateReply{}, `write_micros: 3200 slowest_micros: 25900 free_bytes: 53687091200 total_bytes: 107374182400 store_bytes: 1048576 store_limit_bytes: 21474836480 dir: "/var/lib/skep/bus"
		streams { name: "KV_spec" leader: "id-m1" replicas { name: "id-m2" current: true } } streams { name: "KV_task" leader: "id-m1" }`)}}
	p.State = &skepv1.ClusterCheckReply{}
	p.Vault = &skepv1.VaultCheckReply{CaFromUnixMs: testNow.Add(-365 * day).UnixMilli(), CaUntilUnixMs: testNow.Add(19 * 365 * day).UnixMilli()}
	s := p.After.Services[0]
	s.Meta.UpdatedAt = timestamppb.New(testNow.Add(-time.Hour))
	s.Spec.Task.Container = from(t, &skepv1.ContainerSpec{}, `secrets { id: "sec" name: "db_password" version: 3 } configs { id: "con" name: "site" version: 1 }`)
	task := p.After.Tasks[0]
	task.ServiceId = "web-id"
	task.Status.Files = []*skepv1.HeldFile{{Id: "sec", Version: 3}, {Id: "con", Version: 1}}
}

// certify gives a node a certificate of a life, of which some is left.
func certify(n *skepv1.Node, life, left time.Duration) {
	end := testNow.Add(left)
	n.Description.CertUntilUnixMs = end.UnixMilli()
	n.Description.CertFromUnixMs = end.Add(-life - 65*time.Minute).UnixMilli()
}

func TestUpkeepFindings(t *testing.T) {
	node := func(p *Picture, i int) *skepv1.Node { return p.After.Nodes[i] }
	down := func(n *skepv1.Node) { n.Status.State = skepv1.NodeState_NODE_STATE_DOWN }
	store := func(p *Picture) *skepv1.StoreStateReply { return p.Stores[0].State }
	ahead := func(p *Picture, by map[string]time.Duration) {
		for id, d := range by {
			p.Clocks.Clocks = append(p.Clocks.Clocks, &skepv1.NodeClock{NodeId: id, AheadMs: d.Milliseconds()})
		}
	}
	for name, x := range map[string]struct {
		spoil func(p *Picture)
		want  []string // beginnings of the lines that are not OK, in order
	}{
		"a certificate not renewed": {func(p *Picture) { certify(node(p, 1), 90*day, 17*day) }, []string{
			`warning certificate of w1: it ends in 17 days (2026-03-21 05:06 UTC) and should have been renewed: look for "certificate not renewed" in skep's log there`}},
		"a certificate renewed at the last moment": {func(p *Picture) { certify(node(p, 1), 90*day, 18*day) }, nil},
		"a short one":          {func(p *Picture) { certify(node(p, 1), time.Hour, 12*time.Minute) }, nil},
		"a short one, overdue": {func(p *Picture) { certify(node(p, 1), time.Hour, 11*time.Minute) }, []string{"warning certificate of w1: it ends in 11 minutes"}},
		"of a node that is down": {func(p *Picture) { down(node(p, 1)); certify(node(p, 1), 90*day, 10*day) }, []string{
			"error node w1: it is down", "warning certificate of w1: it ends in 10 days (2026-03-14 05:06 UTC), and nobody renews it while the node is down: start it before, or it has to join again"}},
		"ended": {func(p *Picture) { certify(node(p, 1), 90*day, -time.Second) }, []string{"error certificate of w1: it ended 2026-03-04 05:06 UTC: the node is let in no more once its connection ends. `skep leave --force` and `skep join` there"}},
		"ended while it was down": {func(p *Picture) { down(node(p, 1)); certify(node(p, 1), 90*day, -30*day) }, []string{
			"error node w1: it is down", "error certificate of w1: it ended 2026-02-02 05:06 UTC, while the node was down, so the node is let in no more: `skep leave --force` and `skep join` there, or `skep node rm w1`"}},
		"an older version that says nothing": {func(p *Picture) { node(p, 1).Description.CertFromUnixMs, node(p, 1).Description.CertUntilUnixMs = 0, 0 }, nil},
		"the CA in a year":                   {func(p *Picture) { p.Vault.CaUntilUnixMs = testNow.Add(300 * day).UnixMilli() }, []string{"warning certificate of the CA: it ends in 300 days (2026-12-29 05:06 UTC): all certificates end with it"}},
		"the CA in a week":                   {func(p *Picture) { p.Vault.CaUntilUnixMs = testNow.Add(7 * day).UnixMilli() }, []string{"error certificate of the CA: it ends in 7 days"}},
		"the CA has ended":                   {func(p *Picture) { p.Vault.CaUntilUnixMs = testNow.Add(-day).UnixMilli() }, []string{"error certificate of the CA: it ended 2026-03-03 05:06 UTC"}},

		"no health monitor":  {func(p *Picture) { p.Clocks, p.ClocksErr = nil, errors.New("nobody answers") }, []string{"error clocks: the health monitor does not answer, so nobody notices nodes that fail: nobody answers"}},
		"a clock a bit off":  {func(p *Picture) { ahead(p, map[string]time.Duration{"id-w1": 2900 * time.Millisecond}) }, nil},
		"a clock ahead":      {func(p *Picture) { ahead(p, map[string]time.Duration{"id-w1": 4500 * time.Millisecond}) }, []string{"warning clock of w1: it is 4.5 seconds ahead of manager m1's: set it right there (NTP"}},
		"a clock behind":     {func(p *Picture) { ahead(p, map[string]time.Duration{"id-w1": -10 * time.Minute}) }, []string{"warning clock of w1: it is 10 minutes behind manager m1's"}},
		"a clock far behind": {func(p *Picture) { ahead(p, map[string]time.Duration{"id-w1": -50 * time.Minute}) }, []string{"error clock of w1: it is 50 minutes behind manager m1's"}},
		"a clock made up":    {func(p *Picture) { p.Clocks.Clocks = []*skepv1.NodeClock{{NodeId: "id-w1", AheadMs: -1 << 63}} }, []string{"error clock of w1: it is 100 years behind"}},
		"the manager's": {func(p *Picture) {
			ahead(p, map[string]time.Duration{"id-w1": 20 * time.Second, "id-w2": 21 * time.Second})
		}, []string{"warning clock of m1: it is 21 seconds behind those of 2 of the 2 other nodes: set it right there"}},
		"two that differ": {func(p *Picture) {
			ahead(p, map[string]time.Duration{"id-w1": 20 * time.Second, "id-w2": -20 * time.Second})
		}, []string{"warning clock of w1: it is 20 seconds ahead", "warning clock of w2: it is 20 seconds behind"}},
		"of a node that is down, and of one that is gone": {func(p *Picture) {
			down(node(p, 1))
			ahead(p, map[string]time.Duration{"id-w1": time.Hour, "id-gone": time.Hour})
		}, []string{"error node w1: it is down"}},

		"a silent broker":    {func(p *Picture) { p.Stores[0] = NodeStore{Node: node(p, 0), Err: errors.New("nobody answers")} }, []string{"error store of m1: its broker does not say how the store is: nobody answers"}},
		"a slow disk":        {func(p *Picture) { store(p).WriteMicros = 100_000 }, []string{"warning store of m1: a durable write takes 100ms, and every change waits for one: take other work off the disk that has /var/lib/skep/bus"}},
		"a quick one":        {func(p *Picture) { store(p).WriteMicros = 99_000 }, nil},
		"a stuck disk":       {func(p *Picture) { store(p).WriteMicros = 2_000_000 }, []string{"error store of m1: a durable write takes 2s"}},
		"a disk that stalls": {func(p *Picture) { store(p).SlowestMicros = 1_300_000 }, []string{"warning store of m1: one of a few durable writes took 1.3s"}},
		"a disk that fails": {func(p *Picture) {
			store(p).WriteMicros, store(p).WriteError = 0, "write to the store's disk: input/output error"
		}, []string{
			"error store of m1: write to the store's disk: input/output error: look at that machine's disk"}},
		"little space":                    {func(p *Picture) { store(p).FreeBytes = 900 << 20 }, []string{"warning store of m1: 900MiB are free on the file system of /var/lib/skep/bus, and the store takes 1MiB"}},
		"less than the store":             {func(p *Picture) { store(p).StoreBytes = 11 << 30; store(p).FreeBytes = 10 << 30 }, []string{"warning store of m1: 10GiB are free"}},
		"no space":                        {func(p *Picture) { store(p).FreeBytes = 99 << 20 }, []string{"error store of m1: 99MiB are free"}},
		"a file system that says nothing": {func(p *Picture) { store(p).FreeBytes, store(p).TotalBytes = 0, 0 }, nil},
		"streams near their limit":        {func(p *Picture) { store(p).StoreBytes = 19 << 30 }, []string{"warning store of m1: its streams take 19GiB of the 20GiB they may"}},
		"a stream without a leader":       {func(p *Picture) { store(p).Streams[1].Leader = "" }, []string{"error streams: 1 of 2 do not work (no leader), so nothing is written to them: KV_task"}},
		"streams that say nothing": {func(p *Picture) {
			for _, s := range store(p).Streams {
				s.Err, s.Replicas = "no answer within 2s", nil
			}
		}, []string{"error streams: 2 of 2 do not work (no answer within 2s), so nothing is written to them: KV_spec, KV_task. Is a majority of managers up?"}},
		"a replica behind": {func(p *Picture) { r := store(p).Streams[0].Replicas[0]; r.Name, r.Current, r.Lag = "id-w1", false, 7 }, []string{"warning stream KV_spec: not every manager has all of it: w1 (7 messages behind)"}},
		"a replica away":   {func(p *Picture) { store(p).Streams[0].Replicas[0].Offline = true }, []string{"warning stream KV_spec: not every manager has all of it: id-m2 (offline)"}},
		"a damaged bucket": {func(p *Picture) { store(p).Streams[0].Damage = "the store of bucket spec lacks 3 keys" }, []string{"error store of m1: the store of bucket spec lacks 3 keys. Nothing more is deleted from it"}},
		"a store that was filled anew": {func(p *Picture) {
			store(p).DamagedDir, store(p).DamagedWhy, store(p).DamagedUnixMs = "/var/lib/skep/bus/damaged", "main/1.blk: the record at byte 7 of 9 is not what was written", testNow.UnixMilli()
		}, []string{"warning store of m1: it was found damaged on " + testNow.UTC().Format("2006-01-02 15:04 UTC") + " (main/1.blk: the record at byte 7 of 9 is not what was written), and filled anew from the other managers"}},
		"the second manager's streams are the same": {func(p *Picture) {
			p.Stores = append(p.Stores, NodeStore{Node: node(p, 1), State: from(t, &skepv1.StoreStateReply{}, `streams { name: "KV_spec" err: "x" }`)})
		}, nil},

		"unused": {func(p *Picture) {
			for i := range 12 {
				p.Vault.Unused = append(p.Vault.Unused, &skepv1.UnusedSecret{Kind: skepv1.SecretKind_SECRET_KIND_SECRET, Name: fmt.Sprint("s", i)})
			}
			p.Vault.Unused = append(p.Vault.Unused, &skepv1.UnusedSecret{Kind: skepv1.SecretKind_SECRET_KIND_CONFIG, Name: "site_old"}, &skepv1.UnusedSecret{Kind: skepv1.SecretKind_SECRET_KIND_REGISTRY, Name: "registry.example.com"})
			p.Vault.UnusedMore = 4
		}, []string{
			"warning secrets: no service uses 12 secrets: s0, s1, s2, s3, s4, s5, s6, s7, s8, s9 and 2 more; `skep secret rm` removes what is not needed",
			"warning configs: no service uses 1 config: site_old; `skep config rm`", "warning registries: no service uses 1 login to registries: registry.example.com; the vault removes", "warning secrets: 4 more secrets and configs are used by no service"}},
		"altered":            {func(p *Picture) { p.Vault.Altered = []string{"secret db_password"} }, []string{"error secret db_password: what the store has of it is not what the vault wrote last"}},
		"values of nobody":   {func(p *Picture) { p.Vault.LeftOver = 2 }, []string{"warning secrets: the vault has 2 values that no secret or config names: it removes them within half an hour"}},
		"uses are not known": {func(p *Picture) { p.Vault.UsesError = "not now" }, []string{"warning secrets: it is not known which of them nobody uses: not now"}},
		"a locked vault":     {func(p *Picture) { p.Vault, p.VaultErr = nil, fault.Locked("the secrets are locked") }, nil},
		"no vault":           {func(p *Picture) { p.Vault, p.VaultErr = nil, errors.New("nobody answers") }, []string{"error secrets: the vault does not answer, so no node joins or renews its certificate, and no task gets a secret: nobody answers"}},
		"orphans":            {func(p *Picture) { p.State.Orphans = []string{"status/x", "node/desc.x"} }, []string{"warning leftovers: 2 keys of services and nodes that are gone could not be removed: status/x, node/desc.x; look for"}},
		"differences, and others": {func(p *Picture) {
			p.State.Differences, p.State.More = []string{"service web has no virtual address on network net"}, 3
		}, []string{"warning leftovers: service web has no virtual address on network net: if it is still so", "warning leftovers: and 3 more"}},
		"no answer": {func(p *Picture) { p.State, p.StateErr = nil, errors.New("too old") }, []string{"warning leftovers: state does not say what is left of objects that are gone: too old"}},

		"an old version": {func(p *Picture) { p.After.Tasks[0].Status.Files[0].Version = 2 }, []string{
			"warning service web: 1 task runs with another version of a secret or config than the service: web.1 on node w1 has version 2 of secret db_password, not 3; `skep service ps web` says how its update stands, `skep service update --force web`"}},
		"an old version, by signal": {func(p *Picture) {
			p.After.Tasks[0].Status.Files[1].Version = 7
			p.After.Services[0].Spec.Task.Container.ConfigUpdateSignal = "SIGHUP"
		}, []string{`warning service web: 1 task runs with another version of a secret or config than the service: web.1 on node w1 has version 7 of config site, not 1; if it is still so in five minutes, look for "newer secrets" in skep's log there`}},
		"an old version while it is updated": {func(p *Picture) {
			p.After.Tasks[0].Status.Files[0].Version = 2
			p.After.Services[0].UpdateStatus = &skepv1.UpdateStatus{State: "updating"}
		}, nil},
		"an old version a moment after a change": {func(p *Picture) {
			p.After.Tasks[0].Status.Files[0].Version = 2
			p.After.Services[0].Meta.UpdatedAt = timestamppb.New(testNow.Add(-filesSettle + time.Second))
		}, nil},
		"an old version in a job": {func(p *Picture) {
			p.After.Tasks[0].Status.Files[0].Version = 2
			p.After.Services[0].Spec.Mode = from(t, &skepv1.ServiceMode{}, `replicated_job {}`)
		}, nil},
		"two versions of one": {func(p *Picture) {
			c := p.After.Services[0].Spec.Task.Container
			c.Secrets = append(c.Secrets, &skepv1.FileReference{Id: "sec", Name: "db_password", Version: 1, Pinned: true})
		}, nil},
		"a secret the service has no more": {func(p *Picture) { p.After.Services[0].Spec.Task.Container.Secrets = nil }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			p := healthy(t)
			x.spoil(p)
			got := lines(Examine(*p), OK)
			if len(got) != len(x.want) {
				t.Fatalf("found\n%s\nwant %d", strings.Join(got, "\n"), len(x.want))
			}
			for i, w := range x.want {
				if !strings.HasPrefix(got[i], w) {
					t.Errorf("found %q, want %q", got[i], w)
				}
			}
		})
	}
}

// TestWhatWasMended: a store that removed what its recovery had brought back is well, and says so.
func TestWhatWasMended(t *testing.T) {
	p := healthy(t)
	p.Stores[0].State.Streams[0].Ghosts = 3
	for _, c := range Examine(*p) {
		if c.Check == "store of m1" && (c.Status != OK || !strings.Contains(c.Text, "since its start 3 keys that had been deleted came back")) {
			t.Errorf("%v", c)
		}
	}
}

// TestTheLinesThatSayAllIsWell: one for each group, with the figures a reader would ask for.
func TestTheLinesThatSayAllIsWell(t *testing.T) {
	got := map[string]string{}
	for _, c := range Examine(*healthy(t)) {
		got[c.Check] = c.Text
	}
	for check, want := range map[string]string{
		"certificates":     "3 nodes, the first ends in 60 days; the CA's ends in 19 years",
		"clocks":           "those of 3 nodes are known and near manager m1's",
		"store of m1":      "a durable write takes 3.2ms (the slowest of a few 26ms), 50GiB free",
		"streams":          "2 have a leader, and every replica is up to date (1 to 2 copies)",
		"secrets":          "services use every secret and config, and nothing is left over in the vault",
		"secrets of tasks": "1 task runs with the versions that the services use",
		"leftovers":        "nothing is left in the store of what is gone",
	} {
		if got[check] != want {
			t.Errorf("%s: %q, want %q", check, got[check], want)
		}
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		1500 * time.Millisecond: "1.5 seconds", -12 * time.Second: "12 seconds", 119 * time.Second: "119 seconds", 2 * time.Minute: "2 minutes", 119 * time.Minute: "119 minutes",
		3 * time.Hour: "3 hours", 47 * time.Hour: "47 hours", 2 * day: "2 days", 700 * day: "700 days", 800 * day: "2 years",
	} {
		if got := span(d); got != want {
			t.Errorf("%s is %q, want %q", d, got, want)
		}
	}
}
