package translate

import (
	"crypto/x509"
	"encoding/pem"
	"net/netip"

	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

// raft is what clients are shown of it. Its numbers are Docker's defaults: skep's consensus has none to choose.
func raft() swarm.RaftConfig {
	keep := uint64(0)
	return swarm.RaftConfig{SnapshotInterval: 10000, KeepOldSnapshots: &keep, LogEntriesForSlowFollowers: 500, ElectionTick: 10, HeartbeatTick: 1}
}

// ClusterView is what of a cluster is to be told besides its object.
type ClusterView struct {
	Tokens   swarm.JoinTokens
	TLS      swarm.TLSInfo
	Rotating bool // its root is being replaced
}

// ClusterToDocker is the cluster in Docker's form.
func ClusterToDocker(c *skepv1.Cluster, view ClusterView) swarm.Swarm {
	s := c.GetSpec()
	out := swarm.Swarm{JoinTokens: view.Tokens, ClusterInfo: swarm.ClusterInfo{
		ID: c.GetMeta().GetId(), Meta: metaToDocker(c.GetMeta()), Spec: clusterSpecToDocker(s), TLSInfo: view.TLS, RootRotationInProgress: view.Rotating,
		DefaultAddrPool: []netip.Prefix{}, SubnetSize: s.GetSubnetSize(), DataPathPort: s.GetDataPathPort(),
	}}
	for _, text := range s.GetDefaultAddrPools() {
		if p, ok := prefix(text); ok {
			out.DefaultAddrPool = append(out.DefaultAddrPool, p)
		}
	}
	return out
}

func clusterSpecToDocker(s *skepv1.ClusterSpec) swarm.Spec {
	name, history := s.GetName(), s.GetTaskHistoryLimit()
	if name == "" {
		name = "default"
	}
	return swarm.Spec{
		Annotations: annotations(name, nil), Orchestration: swarm.OrchestrationConfig{TaskHistoryRetentionLimit: &history}, Raft: raft(),
		Dispatcher:       swarm.DispatcherConfig{HeartbeatPeriod: s.GetHeartbeatPeriod().AsDuration()},
		CAConfig:         swarm.CAConfig{NodeCertExpiry: s.GetNodeCertExpiry().AsDuration()},
		EncryptionConfig: swarm.EncryptionConfig{AutoLockManagers: s.GetAutolock()},
	}
}

// ClusterChange is what a client asks of the cluster by sending its spec back.
type ClusterChange struct {
	Spec   *skepv1.ClusterSpec
	Rotate bool // its root is to be replaced: by that of RootCert and RootKey, or by a new one
	// PEM, empty: the cluster makes its own.
	RootCert, RootKey string
}

// ClusterFromDocker reads a spec of the cluster. As in Docker, what is empty or 0 stays as it is. What skep has no such thing
// for is refused, unless it is what clients were shown.
func ClusterFromDocker(current *skepv1.ClusterSpec, in swarm.Spec) (*ClusterChange, error) {
	if in.Name != "" && in.Name != "default" {
		return nil, fault.Invalid("swarm spec must be named \"default\"")
	}
	if err := checkCluster(in); err != nil {
		return nil, err
	}
	out := &ClusterChange{Spec: proto.CloneOf(current), RootCert: in.CAConfig.SigningCACert, RootKey: in.CAConfig.SigningCAKey}
	if n := in.Orchestration.TaskHistoryRetentionLimit; n != nil {
		out.Spec.TaskHistoryLimit = *n
	}
	if d := in.Dispatcher.HeartbeatPeriod; d != 0 {
		out.Spec.HeartbeatPeriod = durationpb.New(d)
	}
	if d := in.CAConfig.NodeCertExpiry; d != 0 {
		out.Spec.NodeCertExpiry = durationpb.New(d)
	}
	out.Spec.Autolock = in.EncryptionConfig.AutoLockManagers
	if (out.RootCert == "") != (out.RootKey == "") {
		return nil, notKept("CAConfig.SigningCACert without SigningCAKey", "a root of your own comes with its key, which signs the nodes' certificates; give both")
	}
	out.Rotate = in.CAConfig.ForceRotate != 0 || out.RootCert != ""
	return out, nil
}

func checkCluster(in swarm.Spec) error {
	shown := raft()
	switch r := in.Raft; {
	case len(in.Labels) > 0:
		return notKept("Labels of the cluster", "label its nodes and services")
	case r.SnapshotInterval != 0 && r.SnapshotInterval != shown.SnapshotInterval:
		return notKept("Raft.SnapshotInterval", "the store takes its snapshots by itself, leave it out")
	case r.KeepOldSnapshots != nil && *r.KeepOldSnapshots != *shown.KeepOldSnapshots:
		return notKept("Raft.KeepOldSnapshots", "the store keeps none; skep backup makes copies")
	case r.LogEntriesForSlowFollowers != 0 && r.LogEntriesForSlowFollowers != shown.LogEntriesForSlowFollowers:
		return notKept("Raft.LogEntriesForSlowFollowers", "the store decides it by itself, leave it out")
	case r.ElectionTick != 0 && r.ElectionTick != shown.ElectionTick:
		return notKept("Raft.ElectionTick", "elections have fixed times, leave it out")
	case r.HeartbeatTick != 0 && r.HeartbeatTick != shown.HeartbeatTick:
		return notKept("Raft.HeartbeatTick", "elections have fixed times, leave it out")
	case len(in.CAConfig.ExternalCAs) > 0:
		return notKept("CAConfig.ExternalCAs", "the cluster signs its nodes' certificates itself; a root of your own is given with SigningCACert and SigningCAKey")
	}
	if l := in.TaskDefaults.LogDriver; l != nil && (l.Name != "" || len(l.Options) > 0) {
		return notKept("TaskDefaults.LogDriver", "services name their log driver themselves")
	}
	return nil
}

// TLSInfo is what a root certificate, PEM, says of itself.
func TLSInfo(root []byte) (swarm.TLSInfo, error) {
	block, _ := pem.Decode(root)
	if block == nil {
		return swarm.TLSInfo{}, fault.New(fault.CodeInternal, "read the cluster's root certificate: it is no PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return swarm.TLSInfo{}, fault.New(fault.CodeInternal, "read the cluster's root certificate: %v", err)
	}
	return swarm.TLSInfo{TrustRoot: string(root), CertIssuerSubject: cert.RawSubject, CertIssuerPublicKey: cert.RawSubjectPublicKeyInfo}, nil
}
