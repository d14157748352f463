package ctrd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"skep.dev/libs/attach"
	"skep.dev/libs/fault"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/node-agent/internal/task"
)

// Networks that a service names by a word; all others are the ids of overlay networks.
const (
	hostNetwork   = "host"
	noNetwork     = "none"
	bridgeNetwork = "bridge" // every task is on skep0 anyway
)

// attachRequest is what a task's spec asks of the mesh.
func attachRequest(j *task.Job, hostname string) attach.Request {
	req := attach.Request{
		TaskID: j.ID(), ServiceID: j.Record.GetServiceId(), Hostname: hostname, Nameservers: j.Container().GetDns().GetNameservers(),
		Fixed: spec.Fixed(j.Revision.GetSpec()),
	}
	for _, n := range j.Revision.GetSpec().GetTask().GetNetworks() {
		switch n.GetTarget() {
		case hostNetwork:
			req.HostNetwork = true
		case noNetwork:
			req.Isolated = true
		case bridgeNetwork:
		default:
			req.Networks = append(req.Networks, n.GetTarget())
		}
	}
	if req.HostNetwork {
		return req // its ports are the host's already
	}
	for _, p := range j.Revision.GetSpec().GetEndpoint().GetPorts() {
		if p.GetPublishMode() == skepv1.PublishMode_PUBLISH_MODE_HOST {
			at, _ := netip.ParseAddr(p.GetHostIp()) // none: state has looked at it
			req.Ports = append(req.Ports, attach.Port{Protocol: p.GetProtocol(), Target: uint16(p.GetTargetPort()), Published: uint16(p.GetPublishedPort()), HostIP: at})
		}
	}
	return req
}

func (r *Runtime) attach(ctx context.Context, j *task.Job, hostname string) (attach.Attachment, error) {
	req := attachRequest(j, hostname)
	att, err := r.cfg.Attacher.Attach(ctx, req)
	if err != nil {
		err = fmt.Errorf("attach the network: %w", err)
		if fault.Is(err, fault.CodeInvalid) {
			return att, err // it will never do
		}
		if len(req.Fixed) > 0 { // another task has its address, which may end at any moment
			return att, task.Soon(err)
		}
		return att, task.Temporary(err)
	}
	if att.Netns == "" && !req.HostNetwork {
		return att, errors.New("attach the network: the mesh gave no network namespace")
	}
	return att, nil
}

// prepared is what the managers are told of a task's network.
func prepared(id string, img *Image, att attach.Attachment) task.Prepared {
	p := task.Prepared{ContainerID: id, Health: img.Health}
	for _, a := range att.Addresses {
		p.Addresses = append(p.Addresses, a.String())
	}
	for _, n := range att.Networks {
		a := &skepv1.NetworkAddress{NetworkId: n.Network, Addr: n.Addr.String()}
		if n.Addr6.IsValid() {
			a.Addr6 = n.Addr6.String()
		}
		p.Networks = append(p.Networks, a)
	}
	for _, b := range att.Ports {
		port := &skepv1.PortConfig{
			Protocol: b.Protocol, TargetPort: uint32(b.Target), PublishedPort: uint32(b.Published), PublishMode: skepv1.PublishMode_PUBLISH_MODE_HOST,
		}
		if b.HostIP.IsValid() {
			port.HostIp = b.HostIP.String()
		}
		p.Ports = append(p.Ports, port)
	}
	return p
}

// ownAddresses are those a task's own host name stands for: peers on its networks reach it there. An IPv6 address on
// skep0 is for clients of published ports alone.
func ownAddresses(att attach.Attachment) []netip.Prefix {
	var out []netip.Prefix
	if len(att.Networks) == 0 {
		for _, a := range att.Addresses {
			if a.Addr().Is4() {
				out = append(out, a)
			}
		}
		return out
	}
	for _, n := range att.Networks {
		out = append(out, n.Addr)
		if n.Addr6.IsValid() {
			out = append(out, n.Addr6)
		}
	}
	return out
}

// drainLimit bounds how long a stop waits for the mesh: above what a node needs that answers late (5 s) and what it takes
// to find out that one never will (3 s).
const drainLimit = 8 * time.Second

// drain takes a task out of names, VIPs and published ports before it is told to end, so that nobody new comes to it.
func (r *Runtime) drain(ctx context.Context, id string) {
	limited, cancel := context.WithTimeout(ctx, drainLimit)
	defer cancel()
	if err := r.cfg.Attacher.Drain(limited, id); err != nil && ctx.Err() == nil {
		r.cfg.Log.Warn("drain task, stopping it all the same", zap.String("task", id), zap.Error(err))
	}
}
