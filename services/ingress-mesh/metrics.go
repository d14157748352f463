package mesh

import (
	"context"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"skep.dev/libs/keys"
	"skep.dev/libs/metrics"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/ingress-mesh/internal/ingress"
)

// meter counts what the mesh does. With no registry nobody sees it.
type meter struct {
	converge *prometheus.HistogramVec
	failed   *prometheus.CounterVec
}

// What a run of the converging loop was for.
const (
	runApply = "apply" // something changed
	runHeal  = "heal"  // the look every few seconds
	runHost  = "host"  // the bridge and the firewall
)

func newMeter(reg prometheus.Registerer) *meter {
	f := promauto.With(reg)
	m := &meter{
		converge: f.NewHistogramVec(prometheus.HistogramOpts{
			Name: "skep_mesh_converge_duration_seconds", Help: "Time to bring the kernel to what is known, by run: apply (something changed), heal, host.",
			Buckets: metrics.DurationBuckets,
		}, []string{"run"}),
		failed: f.NewCounterVec(prometheus.CounterOpts{
			Name: "skep_mesh_converge_errors_total", Help: "Parts that could not be brought to what is known and are tried again, by run.",
		}, []string{"run"}),
	}
	for _, run := range []string{runApply, runHeal, runHost} {
		m.converge.WithLabelValues(run)
		m.failed.WithLabelValues(run)
	}
	return m
}

// ran notes one run that began at that time.
func (m *meter) ran(run string, began time.Time) {
	m.converge.WithLabelValues(run).Observe(time.Since(began).Seconds())
}

// countersFor bounds the reading of the kernel's counters.
const countersFor = 5 * time.Second

// register shows what the kernel counts, looked up on a scrape.
func (s *Service) register(reg prometheus.Registerer) {
	if reg == nil {
		return
	}
	reg.MustRegister(metrics.NewFamily(s.measurePorts).
		Counter("skep_mesh_port_connections_total", "New connections that came in by a published port of this node.", "service", "protocol", "port", "mode").
		Counter("skep_mesh_backend_connections_total", "Those of them that went to a task; node is where it runs.", "service", "protocol", "port", "task", "node").
		Gauge("skep_mesh_port_backends", "Tasks behind a published port, as the kernel has it; 0 = connections are refused.", "service", "protocol", "port", "mode"))
	reg.MustRegister(metrics.NewFamily(s.measureNames).
		Counter("skep_mesh_dns_queries_total", "Queries of tasks, by result: local (a name of the cluster), forwarded (a name server answered), failed (none did), refused (malformed).", "result").
		Gauge("skep_mesh_dns_tasks", "Tasks whose resolver is served."))
	reg.MustRegister(
		metrics.Counter("skep_mesh_repairs_total", "Differences in the kernel that others made to the routing mesh, found and put right.",
			func() float64 { return float64(s.plane.Stats().Mended) }),
		metrics.Gauge("skep_mesh_peers_blocked", "Nodes that do not answer this one through the data path, those that are down included.",
			func() float64 { return float64(len(s.paths.blocked())) }),
		metrics.Gauge("skep_mesh_networks", "Networks this node has tasks on.", func() float64 { return float64(len(s.networksHere())) }))
}

func (s *Service) measurePorts(m *metrics.Sample) {
	ports, err := s.counters()
	if err != nil {
		m.Fail("skep_mesh_port_connections_total", err)
		return
	}
	if len(ports) == 0 {
		return
	}
	owners, nodes, names := s.owners(), map[string]*skepv1.MeshNode{}, s.serviceNames()
	if s.follow != nil {
		nodes = s.follow.Scope(keys.ScopeNodes).Nodes
	}
	for _, p := range ports {
		mode, port, service := "ingress", strconv.Itoa(int(p.Port)), names(p)
		if p.HostMode {
			mode = "host"
		}
		m.Set("skep_mesh_port_connections_total", float64(p.Connections), service, p.Protocol, port, mode)
		m.Set("skep_mesh_port_backends", float64(len(p.Backends)), service, p.Protocol, port, mode)
		// One task may stand in two slots for a moment, while the map is changed.
		tasks, node := map[string]uint64{}, map[string]string{}
		for _, b := range p.Backends {
			owner := owners[b.Addr]
			if p.HostMode {
				owner = s.node
			}
			tasks[b.Task] += b.Connections
			node[b.Task] = nodes[owner].GetHostname()
		}
		for task, n := range tasks {
			m.Set("skep_mesh_backend_connections_total", float64(n), service, p.Protocol, port, task, node[task])
		}
	}
}

// counters reads them from the kernel. A node without managers has none.
func (s *Service) counters() ([]ingress.PortState, error) {
	if !s.Serves() {
		return nil, nil // the host is not set up yet, or not looked after any more
	}
	ctx, cancel := context.WithTimeout(s.Life(), countersFor)
	defer cancel()
	return s.plane.Counters(ctx)
}

// serviceOf is whose a published port is, by id: of one in host mode the task tells.
func (s *Service) serviceOf(p ingress.PortState) string {
	if !p.HostMode || len(p.Backends) == 0 {
		return p.Service
	}
	s.liveMu.Lock()
	defer s.liveMu.Unlock()
	return s.live[p.Backends[0].Task].Service
}

// serviceNames gives a port's service as people call it: its name, or its id while the name is not known here.
func (s *Service) serviceNames() func(ingress.PortState) string {
	known := map[string]*skepv1.MeshService{}
	if s.follow != nil {
		known = s.follow.Scope(keys.ScopeIngress).Services
	}
	return func(p ingress.PortState) string {
		id := s.serviceOf(p)
		if n := known[id].GetName(); n != "" {
			return n
		}
		return id
	}
}

func (s *Service) measureNames(m *metrics.Sample) {
	st := s.resolver.Stats()
	m.Set("skep_mesh_dns_tasks", float64(st.Tasks))
	m.Set("skep_mesh_dns_queries_total", float64(st.Local), "local")
	m.Set("skep_mesh_dns_queries_total", float64(st.Answered), "forwarded")
	m.Set("skep_mesh_dns_queries_total", float64(st.Failures), "failed")
	m.Set("skep_mesh_dns_queries_total", float64(st.Refused), "refused")
}

// count answers mesh.counters.
func (s *Service) count(context.Context, *skepv1.MeshCountersRequest) (*skepv1.MeshCountersReply, error) {
	ports, err := s.counters()
	if err != nil {
		return nil, err
	}
	out := &skepv1.MeshCountersReply{ReadUnixMs: time.Now().UnixMilli()}
	at := map[string]*skepv1.MeshServiceCounter{}
	for _, p := range ports {
		id := s.serviceOf(p)
		if p.Connections == 0 || id == "" {
			continue
		}
		if at[id] == nil {
			at[id] = &skepv1.MeshServiceCounter{ServiceId: id}
			out.Services = append(out.Services, at[id])
		}
		at[id].Connections += p.Connections
	}
	return out, nil
}
