package cli

import (
	"context"
	"slices"
	"time"

	"skep.dev/libs/api"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/render"
)

// markTLS gives each row of a table of nodes Docker's word for the node's certificate, see tlsStatus.
func (a *app) markTLS(ctx context.Context, nodes []*skepv1.Node, t *render.Table) {
	ca, err := call(impatient(ctx), a, api.CAInspect, &skepv1.Empty{})
	if err != nil {
		a.warnf("whether certificates are of the cluster's root is not known: %v", err)
		ca = nil
	}
	status := map[string]string{}
	for _, n := range nodes {
		status[n.GetMeta().GetId()] = tlsStatus(n, ca, a.Now())
	}
	for _, row := range t.Rows {
		row["TLSStatus"] = status[row["ID"]]
	}
}

// tlsStatus is Ready of a node whose certificate is of the cluster's root, "Needs Rotation" of one whose certificate has ended or
// for which a rotation of the root waits, and Unknown where nobody says (ca nil: the vault does not).
func tlsStatus(n *skepv1.Node, ca *skepv1.CAReply, now time.Time) string {
	const ready, needs, unknown = "Ready", "Needs Rotation", "Unknown"
	until := n.GetDescription().GetCertUntilUnixMs()
	switch {
	case until != 0 && now.After(time.UnixMilli(until)):
		return needs
	case until == 0 || ca == nil:
		return unknown
	case ca.GetRotation() == nil:
		return ready
	}
	p := ca.GetProgress()
	switch {
	case p == nil:
		return unknown // it has only begun
	case slices.ContainsFunc(p.GetWaiting(), func(w *skepv1.CAWaiting) bool { return w.GetNodeId() == n.GetMeta().GetId() }):
		return needs
	case p.GetMoved()+uint64(len(p.GetWaiting())) < p.GetNodes():
		return unknown // it names only some of those it waits for
	}
	return ready
}
