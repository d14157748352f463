package render

import (
	"testing"

	skepv1 "skep.dev/proto/skep/v1"
)

func TestNames(t *testing.T) {
	const web, t1, t2, w1 = "webwebwebwebwebwebwebweb1", "taskaaaaaaaaaaaaaaaaaaaa1", "taskaaaaaaaaaaaaaaaaaaaa2", "nodenodenodenodenodenode1"
	n := NamesOf(
		[]*skepv1.Node{{Meta: &skepv1.Meta{Id: w1}, Subnet: "100.64.2.0/23", Description: &skepv1.NodeDescription{Hostname: "w1", Addr: "192.0.2.7"}}, {}},
		[]*skepv1.Service{{Meta: &skepv1.Meta{Id: web}, Spec: &skepv1.ServiceSpec{Name: "web"}, Endpoint: &skepv1.Endpoint{VirtualIps: []*skepv1.VirtualIP{{Addr: "10.0.1.2/24"}}}}},
		[]*skepv1.Task{
			{Meta: &skepv1.Meta{Id: t1}, Name: "web.1", NodeHostname: "w1", Status: &skepv1.TaskStatus{State: skepv1.TaskState_TASK_STATE_RUNNING, Addresses: []string{"100.64.2.5/23", "fd00::5/64"},
				Networks: []*skepv1.NetworkAddress{{Addr: "10.0.1.5/24", Addr6: "fd00:1::5/64"}}}},
			{Meta: &skepv1.Meta{Id: t2}, Name: "web.2", Status: &skepv1.TaskStatus{State: skepv1.TaskState_TASK_STATE_FAILED, Addresses: []string{"100.64.2.6/23"}}},
		})
	for in, want := range map[string]string{
		"backend 0: 100.64.2.5:80, task " + t1 + " (3 connections so far)": "backend 0: 100.64.2.5:80 (web.1 on w1), task " + t1 + " (3 connections so far)",
		"8080/tcp of service " + web + ", to an IPv4 address":              "8080/tcp of service " + web + " (web), to an IPv4 address",
		"web is 10.0.1.2": "web is 10.0.1.2 (service web)",
		"100.64.2.5 is on another node, by skin0 via 100.64.2.1": "100.64.2.5 (web.1 on w1) is on another node, by skin0 via 100.64.2.1 (node w1)",
		"sent to node address 192.0.2.7, UDP port 4789":          "sent to node address 192.0.2.7 (node w1), UDP port 4789",
		"backend 1: [fd00::5]:80, task x":                        "backend 1: [fd00::5]:80 (web.1 on w1), task x",
		"fd00:1::5 is a task of node " + w1 + ".":                "fd00:1::5 (web.1 on w1) is a task of node " + w1 + " (node w1).",
		"task " + t2 + " at 100.64.2.6:80":                       "task " + t2 + " (web.2) at 100.64.2.6:80", // whose it is now, nobody knows
		"100.64.2.0/23 by skin0, 02:42:64:40:00:05, :: [ ]":      "100.64.2.0/23 by skin0, 02:42:64:40:00:05, :: [ ]",
		"": "",
	} {
		if got := n.In(in); got != want {
			t.Errorf("%q:\n  %q\n  %q", in, got, want)
		}
	}
}
