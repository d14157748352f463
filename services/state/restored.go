package state

import (
	"context"
	"slices"

	"go.uber.org/zap"

	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// After a restore nodes run what the backup does not know of, until somebody settles that (ClusterSpec.restored).

// mostUnknown is how many tasks one answer names.
const mostUnknown = 1000

// unknownTasks lists what nodes that are there say they run although no record has it.
func (s *Service) unknownTasks(context.Context, *skepv1.ListUnknownTasksRequest) (*skepv1.ListUnknownTasksReply, error) {
	out := &skepv1.ListUnknownTasksReply{Kept: s.ix.Cluster().GetSpec().GetRestored()}
	for _, n := range s.ix.NodeNames() {
		if node := s.ix.Node(n.ID); node.GetStatus().GetState() != skepv1.NodeState_NODE_STATE_READY {
			out.Missing = append(out.Missing, n.Name)
			continue
		}
		records, status, _ := s.ix.Tasks(n.ID)
		for _, r := range records {
			delete(status, r.Id)
		}
		var ids []string
		for id, st := range status {
			if st.State < skepv1.TaskState_TASK_STATE_COMPLETE {
				ids = append(ids, id)
			}
		}
		slices.Sort(ids)
		for _, id := range ids {
			if len(out.Tasks) == mostUnknown {
				out.More++
				continue
			}
			out.Tasks = append(out.Tasks, &skepv1.UnknownTask{NodeId: n.ID, Hostname: n.Name, TaskId: id, StartedUnixMs: status[id].StartedUnixMs, ContainerId: status[id].ContainerId})
		}
	}
	return out, nil
}

// tellNodes has every node ask for the cluster's settings, and for what it is to do under them: a heartbeat period that a
// node does not know of makes it look dead. One that does not hear this asks within minutes.
func (s *Service) tellNodes() {
	for _, id := range s.ix.NodeIDs() {
		if err := s.cfg.NC.Publish(subject.PushFiles(id), nil); err != nil {
			s.log.Warn("a node is not told of the cluster's new settings; it asks later", zap.String("node", id), zap.Error(err))
		}
	}
}
