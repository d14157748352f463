package backup

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/subject"
	pb "skep.dev/proto/skep/v1"
)

// Renew makes of a backup's content what a cluster begins with that is restored from it:
//
//   - The managers of then are gone: their servers' group is over, and what was on their disks is not what is restored. One
//     that comes back joins as a new node, as after `node rm`. Their tasks are found to be on no node, and run elsewhere.
//   - A node that is called as the machine is on which it is restored was that machine, which is none now: it is gone, too. Two
//     nodes cannot have one name.
//   - The cluster knows that it was restored (ClusterSpec.restored): nodes keep what they run beside what it knows.
//
// It returns the host names or ids of those that are gone.
func Renew(c Content, hostname string) (gone []string, err error) {
	left, names := map[string]bool{}, map[string]string{}
	for _, e := range c[subject.NodeB] {
		var d pb.NodeDescription
		f, id := keys.Of(subject.NodeB, e.Key)
		if f != keys.Description || proto.Unmarshal(e.Value, &d) != nil {
			continue
		}
		names[id] = d.Hostname
		if hostname != "" && strings.EqualFold(d.Hostname, hostname) {
			left[id] = true
		}
	}
	for i, e := range c[subject.Spec] {
		switch f, id := keys.Of(subject.Spec, e.Key); f {
		case keys.Cluster:
			var o pb.Cluster
			if err := proto.Unmarshal(e.Value, &o); err != nil || o.Spec == nil {
				return nil, fmt.Errorf("read the cluster: %w", err)
			}
			o.Spec.Restored = true
			if c[subject.Spec][i].Value, err = proto.Marshal(&o); err != nil {
				return nil, fmt.Errorf("write the cluster: %w", err)
			}
		case keys.Node:
			var o pb.NodeObject
			if err := proto.Unmarshal(e.Value, &o); err != nil {
				return nil, fmt.Errorf("read node %s: %w", id, err)
			}
			if o.Role == pb.NodeRole_NODE_ROLE_MANAGER || o.Spec.GetRole() == pb.NodeRole_NODE_ROLE_MANAGER {
				left[id] = true
			}
		}
	}
	drop := func(b subject.Bucket, gone func(f *keys.Family, id string, e kv.Entry) bool) {
		c[b] = slices.DeleteFunc(c[b], func(e kv.Entry) bool {
			f, id := keys.Of(b, e.Key)
			return gone(f, id, e)
		})
	}
	drop(subject.Spec, func(f *keys.Family, id string, e kv.Entry) bool {
		return f == keys.Node && left[id] || f == keys.NodeNumber && left[string(e.Value)]
	})
	drop(subject.NodeB, func(f *keys.Family, id string, _ kv.Entry) bool {
		return (f == keys.Description || f == keys.Live) && left[id]
	})
	drop(subject.Secret, func(f *keys.Family, id string, _ kv.Entry) bool { return f == keys.ManagerLock })
	for id := range left {
		if names[id] == "" {
			names[id] = id
		}
		gone = append(gone, names[id])
	}
	slices.Sort(gone)
	return gone, nil
}
