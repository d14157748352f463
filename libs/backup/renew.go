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
//   - The cluster knows that it was restored (ClusterSpec.restored): nodes keep what they run beside what it knows.
//
// It returns the managers' host names or ids.
func Renew(c Content) (gone []string, err error) {
	managers := map[string]bool{}
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
				managers[id] = true
			}
		}
	}
	names := map[string]string{}
	drop := func(b subject.Bucket, gone func(f *keys.Family, id string, e kv.Entry) bool) {
		c[b] = slices.DeleteFunc(c[b], func(e kv.Entry) bool {
			f, id := keys.Of(b, e.Key)
			return gone(f, id, e)
		})
	}
	drop(subject.Spec, func(f *keys.Family, id string, e kv.Entry) bool {
		return f == keys.Node && managers[id] || f == keys.NodeNumber && managers[string(e.Value)]
	})
	drop(subject.NodeB, func(f *keys.Family, id string, e kv.Entry) bool {
		var d pb.NodeDescription
		if f == keys.Description && managers[id] && proto.Unmarshal(e.Value, &d) == nil {
			names[id] = d.Hostname
		}
		return (f == keys.Description || f == keys.Live) && managers[id]
	})
	drop(subject.Secret, func(f *keys.Family, id string, _ kv.Entry) bool { return f == keys.ManagerLock })
	for id := range managers {
		if names[id] == "" {
			names[id] = id
		}
		gone = append(gone, names[id])
	}
	slices.Sort(gone)
	return gone, nil
}

// Called is the node, of those that are left after Renew, that has a host name; "" when none has. Two nodes cannot have one.
func Called(c Content, hostname string) (node string) {
	for _, e := range c[subject.NodeB] {
		var d pb.NodeDescription
		if f, id := keys.Of(subject.NodeB, e.Key); f == keys.Description && proto.Unmarshal(e.Value, &d) == nil && strings.EqualFold(d.Hostname, hostname) {
			return id
		}
	}
	return ""
}
