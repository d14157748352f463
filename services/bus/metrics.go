package bus

import (
	"context"
	"fmt"

	"github.com/nats-io/nats-server/v2/server"

	"skep.dev/libs/metrics"
)

// register shows what the broker does. Its own monitoring is asked on a scrape, in process.
func (b *Bus) register() error {
	if b.cfg.Metrics == nil {
		return nil
	}
	f := metrics.NewFamily(b.measure).
		Gauge("skep_bus_connections", "Clients connected: nodes, services and users.").
		Counter("skep_bus_connections_opened_total", "Connections accepted since the start.").
		Gauge("skep_bus_routes", "Connections to other servers of the cluster, the witness included.").
		Gauge("skep_bus_subscriptions", "Subscriptions of all clients.").
		Counter("skep_bus_received_messages_total", "Messages from clients.").
		Counter("skep_bus_received_bytes_total", "Bytes from clients.").
		Counter("skep_bus_sent_messages_total", "Messages to clients.").
		Counter("skep_bus_sent_bytes_total", "Bytes to clients.").
		Counter("skep_bus_slow_consumers_total", "Clients cut off because they did not read.").
		Gauge("skep_bus_joiners", "Connections without a certificate.").
		Counter("skep_bus_cut_off_total", "Connections closed because they did what they may not, took too much, or gave way to a newer one of their kind.").
		Gauge("skep_bus_jetstream_store_bytes", "Bytes of all streams on disk.").
		Gauge("skep_bus_jetstream_store_limit_bytes", "Bytes the streams may take.").
		Gauge("skep_bus_jetstream_messages", "Messages in all streams.").
		Gauge("skep_bus_jetstream_streams", "Streams.").
		Gauge("skep_bus_jetstream_consumers", "Consumers of streams.").
		Counter("skep_bus_jetstream_api_requests_total", "Requests to the JetStream API.").
		Counter("skep_bus_jetstream_api_errors_total", "Requests to the JetStream API that failed.").
		Gauge("skep_bus_jetstream_has_leader", "1 while the group of managers has a leader: without one nothing is written.")
	if err := b.cfg.Metrics.Register(f); err != nil {
		return fmt.Errorf("register the broker's metrics: %w", err)
	}
	context.AfterFunc(b.Life(), func() { b.cfg.Metrics.Unregister(f) }) // another broker may run in this process after it
	return nil
}

func (b *Bus) measure(m *metrics.Sample) {
	main := b.running()
	if main == nil {
		return
	}
	v, err := main.Varz(nil)
	if err != nil {
		m.Fail("skep_bus_connections", fmt.Errorf("ask the broker: %w", err))
		return
	}
	m.Set("skep_bus_connections", float64(v.Connections))
	m.Set("skep_bus_connections_opened_total", float64(v.TotalConnections))
	m.Set("skep_bus_routes", float64(v.Routes))
	m.Set("skep_bus_subscriptions", float64(v.Subscriptions))
	m.Set("skep_bus_received_messages_total", float64(v.InMsgs))
	m.Set("skep_bus_received_bytes_total", float64(v.InBytes))
	m.Set("skep_bus_sent_messages_total", float64(v.OutMsgs))
	m.Set("skep_bus_sent_bytes_total", float64(v.OutBytes))
	m.Set("skep_bus_slow_consumers_total", float64(v.SlowConsumers))
	_, joiners, cut := b.guests.count()
	m.Set("skep_bus_joiners", float64(joiners))
	m.Set("skep_bus_cut_off_total", float64(cut))
	j, err := main.Jsz(&server.JSzOptions{})
	if err != nil {
		m.Fail("skep_bus_jetstream_store_bytes", fmt.Errorf("ask the broker about its streams: %w", err))
		return
	}
	led := 0.0
	if j.Meta != nil && j.Meta.Leader != "" {
		led = 1
	}
	m.Set("skep_bus_jetstream_store_bytes", float64(j.Store))
	m.Set("skep_bus_jetstream_store_limit_bytes", float64(j.Config.MaxStore))
	m.Set("skep_bus_jetstream_messages", float64(j.Messages))
	m.Set("skep_bus_jetstream_streams", float64(j.Streams))
	m.Set("skep_bus_jetstream_consumers", float64(j.Consumers))
	m.Set("skep_bus_jetstream_api_requests_total", float64(j.API.Total))
	m.Set("skep_bus_jetstream_api_errors_total", float64(j.API.Errors))
	m.Set("skep_bus_jetstream_has_leader", led)
}
