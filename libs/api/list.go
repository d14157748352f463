package api

import (
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"skep.dev/libs/subject"
	pb "skep.dev/proto/skep/v1"
)

// What people ask of state: skep.v1.api.service.create.
var (
	ServiceCreate    = once(ForPeople[*pb.CreateServiceRequest, *pb.ServiceReply]("state", "service.create", Writes, Operators))
	ServiceUpdate    = once(ForPeople[*pb.UpdateServiceRequest, *pb.ServiceReply]("state", "service.update", Writes, Operators))
	ServiceScale     = once(ForPeople[*pb.ScaleServiceRequest, *pb.ServiceReply]("state", "service.scale", Writes, Operators))
	ServiceRollout   = once(ForPeople[*pb.RolloutRequest, *pb.ServiceReply]("state", "service.rollout", Writes, Operators))
	ServiceRun       = once(ForPeople[*pb.RunServiceRequest, *pb.ServiceReply]("state", "service.run", Writes, Operators))
	ServiceRemove    = once(ForPeople[*pb.RemoveServiceRequest, *pb.ServiceReply]("state", "service.rm", Writes, Operators))
	ServiceInspect   = ForPeople[*pb.Ref, *pb.ServiceReply]("state", "service.inspect", Reads, Viewers)
	ServiceList      = ForPeople[*pb.ListServicesRequest, *pb.ListServicesReply]("state", "service.list", Reads, Viewers)
	ServiceRevisions = ForPeople[*pb.ListRevisionsRequest, *pb.ListRevisionsReply]("state", "service.revisions", Reads, Viewers)
	TaskInspect      = ForPeople[*pb.Ref, *pb.TaskReply]("state", "task.inspect", Reads, Viewers)
	TaskList         = ForPeople[*pb.ListTasksRequest, *pb.ListTasksReply]("state", "task.list", Reads, Viewers)
	// TaskUnknown is what nodes run although no record has it.
	TaskUnknown = ForPeople[*pb.ListUnknownTasksRequest, *pb.ListUnknownTasksReply]("state", "task.unknown", Reads, Viewers)
	NodeInspect = ForPeople[*pb.Ref, *pb.NodeReply]("state", "node.inspect", Reads, Viewers)
	NodeList    = ForPeople[*pb.ListNodesRequest, *pb.ListNodesReply]("state", "node.list", Reads, Viewers)
	NodeUpdate  = ForPeople[*pb.UpdateNodeRequest, *pb.NodeReply]("state", "node.update", Writes, Admins)
	NodeRemove  = ForPeople[*pb.RemoveNodeRequest, *pb.Empty]("state", "node.rm", Writes, Admins)
	NodeFence   = ForPeople[*pb.FenceNodeRequest, *pb.NodeReply]("state", "node.fence", Writes, Admins)
	NodeAdmit   = ForPeople[*pb.AdmitNodeRequest, *pb.NodeReply]("state", "node.admit", Writes, Managers)
	// NodeSettle makes a worker of a manager that is to be one, once its server has left the group.
	NodeSettle     = ForPeople[*pb.SettleNodeRequest, *pb.NodeReply]("state", "node.settle", Writes, Managers)
	NetworkCreate  = once(ForPeople[*pb.CreateNetworkRequest, *pb.NetworkReply]("state", "network.create", Writes, Operators))
	NetworkRemove  = once(ForPeople[*pb.Ref, *pb.NetworkReply]("state", "network.rm", Writes, Operators))
	NetworkInspect = ForPeople[*pb.Ref, *pb.NetworkReply]("state", "network.inspect", Reads, Viewers)
	NetworkList    = ForPeople[*pb.ListNetworksRequest, *pb.ListNetworksReply]("state", "network.list", Reads, Viewers)
	StackDeploy    = ForPeople[*pb.DeployStackRequest, *pb.DeployStackReply]("state", "stack.deploy", Writes, Operators)
	StackRollback  = ForPeople[*pb.RollbackStackRequest, *pb.DeployStackReply]("state", "stack.rollback", Writes, Operators)
	StackRemove    = ForPeople[*pb.RemoveStackRequest, *pb.StackReply]("state", "stack.rm", Writes, Operators)
	StackInspect   = ForPeople[*pb.Ref, *pb.StackReply]("state", "stack.inspect", Reads, Viewers)
	StackList      = ForPeople[*pb.ListStacksRequest, *pb.ListStacksReply]("state", "stack.list", Reads, Viewers)
	StackRevisions = ForPeople[*pb.ListStackRevisionsRequest, *pb.ListStackRevisionsReply]("state", "stack.revisions", Reads, Viewers)
	ClusterInit    = ForPeople[*pb.InitClusterRequest, *pb.ClusterReply]("state", "cluster.init", Writes, Managers)
	ClusterInspect = ForPeople[*pb.Empty, *pb.ClusterReply]("state", "cluster.inspect", Reads, Viewers)
	ClusterUpdate  = ForPeople[*pb.UpdateClusterRequest, *pb.ClusterReply]("state", "cluster.update", Writes, Admins)
	EventList      = ForPeople[*pb.ListEventsRequest, *pb.ListEventsReply]("state", "event.list", Reads, Viewers)
	AuditList      = ForPeople[*pb.ListAuditRequest, *pb.ListEventsReply]("state", "audit.list", Reads, Operators)
	ClusterCheck   = ForPeople[*pb.Empty, *pb.ClusterCheckReply]("state", "cluster.check", Reads, Operators)
)

// What people ask of the vault, and what it and state ask of each other.
var (
	VaultKey      = ForPeople[*pb.Empty, *pb.VaultKey]("secrets-vault", "vault.key", Reads, Operators)
	SecretCreate  = once(ForPeople[*pb.CreateSecretRequest, *pb.SecretReply]("secrets-vault", "secret.create", Writes, Operators))
	SecretUpdate  = once(ForPeople[*pb.UpdateSecretRequest, *pb.SecretReply]("secrets-vault", "secret.update", Writes, Operators))
	SecretRemove  = once(ForPeople[*pb.RemoveSecretRequest, *pb.RemoveSecretReply]("secrets-vault", "secret.rm", Writes, Operators))
	SecretInspect = ForPeople[*pb.InspectSecretRequest, *pb.InspectSecretReply]("secrets-vault", "secret.inspect", Reads, Viewers)
	SecretList    = ForPeople[*pb.ListSecretsRequest, *pb.ListSecretsReply]("secrets-vault", "secret.list", Reads, Viewers)
	ConfigCreate  = once(ForPeople[*pb.CreateSecretRequest, *pb.SecretReply]("secrets-vault", "config.create", Writes, Operators))
	ConfigUpdate  = once(ForPeople[*pb.UpdateSecretRequest, *pb.SecretReply]("secrets-vault", "config.update", Writes, Operators))
	ConfigRemove  = once(ForPeople[*pb.RemoveSecretRequest, *pb.RemoveSecretReply]("secrets-vault", "config.rm", Writes, Operators))
	ConfigInspect = ForPeople[*pb.InspectSecretRequest, *pb.InspectSecretReply]("secrets-vault", "config.inspect", Reads, Viewers)
	ConfigList    = ForPeople[*pb.ListSecretsRequest, *pb.ListSecretsReply]("secrets-vault", "config.list", Reads, Viewers)
	// RegistryCreate keeps the credentials of an image registry for one service that is about to be made.
	RegistryCreate = once(ForPeople[*pb.CreateSecretRequest, *pb.SecretReply]("secrets-vault", "registry.create", Writes, Operators))
	FilesResolve   = ForPeople[*pb.ResolveFilesRequest, *pb.ResolveFilesReply]("secrets-vault", "files.resolve", Reads, Managers)
	FilesUses      = ForPeople[*pb.SecretUsesRequest, *pb.SecretUsesReply]("state", "files.uses", Reads, Managers)
	FilesOfTasks   = ForPeople[*pb.TaskFilesRequest, *pb.TaskFilesReply]("state", "files.tasks", Reads, Managers)
	VaultCheck     = ForPeople[*pb.Empty, *pb.VaultCheckReply]("secrets-vault", "vault.check", Reads, Operators)
	// FilesDrop removes a secret or config that a stack had made.
	FilesDrop = ForPeople[*pb.DropFileRequest, *pb.RemoveSecretReply]("secrets-vault", "files.drop", Writes, Managers)
	FilesRoll = ForPeople[*pb.RollSecretRequest, *pb.RollSecretReply]("state", "files.roll", Writes, Managers)
)

// How the vault's master key rests, and what opens it.
var (
	AutolockGet = ForPeople[*pb.Empty, *pb.AutolockState]("secrets-vault", "autolock.state", Reads, Viewers)
	AutolockKey = ForPeople[*pb.UnlockKeyRequest, *pb.UnlockKeyReply]("secrets-vault", "autolock.key", Writes, Admins)
	AutolockSet = ForPeople[*pb.SetAutolockRequest, *pb.AutolockState]("secrets-vault", "autolock.set", Writes, Managers)
	// VaultOpen is answered by the vaults that are not locked.
	VaultOpen = ForPeople[*pb.Empty, *pb.Empty]("secrets-vault", "vault.open", Reads, Managers)
	// VaultDoor and VaultUnlock are answered by the vaults of one node that are locked.
	VaultDoor   = define[*pb.VaultDoorRequest, *pb.VaultDoor](subject.Node("*", "vault.door"), "secrets-vault", Reads, Admins)
	VaultUnlock = define[*pb.UnlockRequest, *pb.UnlockReply](subject.Node("*", "vault.unlock"), "secrets-vault", Writes, Admins)
	// VaultBackup begins a stream of bytes (libs/stream) from the vaults of one node that are not locked: a backup.
	VaultBackup = define[*pb.BackupRequest, *pb.StreamOpenReply](subject.Node("*", "vault.backup.open"), "secrets-vault", Writes, Admins)
	// BackupKey sets what scheduled backups are sealed under; VaultBackups is answered by the open vaults of one node.
	BackupKey    = ForPeople[*pb.BackupKeyRequest, *pb.BackupKeyReply]("secrets-vault", "backup.key", Writes, Admins)
	VaultBackups = define[*pb.Empty, *pb.KeptBackupsReply](subject.Node("*", "vault.backups"), "secrets-vault", Reads, Operators)
)

// What people ask of the others.
var (
	ServiceExplain = ForPeople[*pb.ExplainRequest, *pb.ExplainReply]("scheduler", "service.explain", Reads, Viewers)
	PlanService    = ForPeople[*pb.PlanRequest, *pb.PlanReply]("scheduler", "plan.service", Reads, Viewers)
	VolumeClaims   = ForPeople[*pb.ListClaimsRequest, *pb.ListClaimsReply]("scheduler", "volume.claims", Reads, Viewers)
	// VolumeRelease is answered by the leader.
	VolumeRelease = ForPeople[*pb.ReleaseClaimRequest, *pb.ReleaseClaimReply]("scheduler", "volume.release", Writes, Operators)
	TokenGet      = ForPeople[*pb.JoinTokenRequest, *pb.JoinTokenReply]("secrets-vault", "token.get", Writes, Admins)
	UserIssue     = ForPeople[*pb.IssueUserRequest, *pb.IssueUserReply]("secrets-vault", "user.issue", Writes, Admins)
	UserIssued    = ForPeople[*pb.Empty, *pb.IssuedUsersReply]("secrets-vault", "user.issued", Reads, Admins)
	UserRevoke    = ForPeople[*pb.RevokeUserRequest, *pb.RevokeUserReply]("secrets-vault", "user.revoke", Writes, Admins)
	UserExchange  = ForPeople[*pb.ExchangeUserRequest, *pb.IssueUserReply]("secrets-vault", "user.exchange", Writes, Viewers)
	CAInspect     = ForPeople[*pb.Empty, *pb.CAReply]("secrets-vault", "ca.inspect", Reads, Viewers)
	CARotate      = ForPeople[*pb.RotateCARequest, *pb.CAReply]("secrets-vault", "ca.rotate", Writes, Admins)
	MeshNetwork   = ForPeople[*pb.MeshNetworkRequest, *pb.MeshNetworkReply]("ingress-mesh", "mesh.network", Reads, Viewers)
	HealthClocks  = ForPeople[*pb.ClocksRequest, *pb.ClocksReply]("health-monitor", "health.clocks", Reads, Operators)
	// ClusterRefound has the nodes follow a group that was founded anew: who is not in it is no manager any more.
	ClusterRefound = ForPeople[*pb.RefoundRequest, *pb.Empty]("state", "cluster.refound", Writes, Managers)
	// ManagerList is answered by every broker from what it knows, also without a majority.
	ManagerList  = ForPeople[*pb.Empty, *pb.ListManagersReply]("bus", "manager.list", Reads, Viewers)
	ImageResolve = ForPeople[*pb.ResolveImageRequest, *pb.ResolveImageReply]("node-agent", "image.resolve", Reads, Operators)
)

// What nodes ask: skep.v1.svc.state.status.<node>.
var (
	StateDescribe = node[*pb.DescribeRequest, *pb.DescribeReply]("state", "state", "describe", Writes)
	StateSnapshot = node[*pb.SnapshotRequest, *pb.SnapshotReply]("state", "state", "snapshot", Reads)
	StateSpecs    = node[*pb.SpecsRequest, *pb.SpecsReply]("state", "state", "specs", Reads)
	StateStatus   = node[*pb.NodeStatus, *pb.StatusReply]("state", "state", "status", Writes)
	StateTold     = node[*pb.ToldRequest, *pb.Empty]("state", "state", "told", Writes)
	// StateManagers is asked by every node when it is connected, when PushRole tells it to, and now and then.
	StateManagers = node[*pb.Empty, *pb.NodeManagersReply]("state", "state", "managers", Reads)
	// BusEnlist is answered by the broker that holds the lease of the managers; managers alone are let in.
	BusEnlist = node[*pb.EnlistRequest, *pb.EnlistReply]("bus", "bus", "enlist", Writes)
	// VaultMaster gives a manager the master key, sealed to its certificate.
	VaultMaster  = node[*pb.DeliverRequest, *pb.MasterReply]("secrets-vault", "vault", "master", Reads)
	VaultRenew   = node[*pb.RenewRequest, *pb.RenewReply]("secrets-vault", "vault", "renew", Writes)
	VaultTrust   = node[*pb.TrustRequest, *pb.TrustReply]("secrets-vault", "vault", "trust", Reads)
	VaultDeliver = node[*pb.DeliverRequest, *pb.DeliverReply]("secrets-vault", "vault", "deliver", Reads)
	MeshSync     = node[*pb.MeshSyncRequest, *pb.MeshSyncReply]("ingress-mesh", "mesh", "sync", Reads)
	MeshLease    = node[*pb.LeaseBlockRequest, *pb.LeaseBlockReply]("ingress-mesh", "mesh", "lease", Writes)
	MeshReturn   = node[*pb.ReturnBlocksRequest, *pb.ReturnBlocksReply]("ingress-mesh", "mesh", "return", Writes)
	MeshDrain    = node[*pb.DrainRequest, *pb.DrainReply]("ingress-mesh", "mesh", "drain", Writes)
)

// Join is what a connection without a certificate asks: skep.v1.join.<joiner>.
var Join = define[*pb.JoinRequest, *pb.JoinReply](subject.Join("*"), "secrets-vault", Writes, Joiners)

// Epoch is asked before anything else of a manager that is known: a cluster that was founded anew is told by it, also from
// those it does not let in any more. It says nothing that the manager's certificate does not, but for a number.
var Epoch = define[*pb.Empty, *pb.EpochReply](subject.Epoch("*"), "bus", Reads, Joiners)

// What is asked of one node: skep.v1.node.<id>.image.ls. Those called Open begin a stream of bytes (libs/stream).
var (
	// NodeSelf is asked without waiting for one answer alone: every machine with the node's identity gives one.
	NodeSelf     = define[*pb.Empty, *pb.SelfReply](subject.Node("*", "self"), "node-agent", Reads, Managers)
	ImageList    = atNode[*pb.ListImagesRequest, *pb.ListImagesReply]("node-agent", "image.ls", Reads)
	ImageRemove  = atNode[*pb.RemoveImageRequest, *pb.RemoveImageReply]("node-agent", "image.rm", Writes)
	ImagePull    = atNode[*pb.PullImageRequest, *pb.PullImageReply]("node-agent", "image.pull", Writes)
	ImageOpen    = atNode[*pb.LoadImageRequest, *pb.StreamOpenReply]("node-agent", "image.load.open", Writes)
	VolumeCreate = atNode[*pb.CreateVolumeRequest, *pb.VolumeReply]("node-agent", "volume.create", Writes)
	VolumeList   = atNode[*pb.ListVolumesRequest, *pb.ListVolumesReply]("node-agent", "volume.ls", Reads)
	VolumeUpdate = atNode[*pb.UpdateVolumeRequest, *pb.VolumeReply]("node-agent", "volume.update", Writes)
	VolumeRemove = atNode[*pb.RemoveVolumeRequest, *pb.Empty]("node-agent", "volume.rm", Writes)
	VolumePrune  = atNode[*pb.PruneVolumesRequest, *pb.PruneVolumesReply]("node-agent", "volume.prune", Writes)
	ExecOpen     = atNode[*pb.ExecRequest, *pb.StreamOpenReply]("node-agent", "exec.open", Writes)
	LogsOpen     = atNode[*pb.LogsRequest, *pb.StreamOpenReply]("node-agent", "logs.open", Reads)
	Stats        = atNode[*pb.StatsRequest, *pb.StatsReply]("node-agent", "stats", Reads)
	MeshState    = atNode[*pb.MeshStateRequest, *pb.MeshStateReply]("ingress-mesh", "mesh.state", Reads)
	MeshTrace    = atNode[*pb.MeshTraceRequest, *pb.MeshTraceReply]("ingress-mesh", "mesh.trace", Reads)
	MeshCounters = atNode[*pb.MeshCountersRequest, *pb.MeshCountersReply]("ingress-mesh", "mesh.counters", Reads)
	// NodeCertificate has a node ask the vault which roots and certificate it should have, and answers what it then has.
	NodeCertificate = atNode[*pb.Empty, *pb.CertificateReply]("node-agent", "certificate", Reads)
	// UpgradeOpen has a node replace its own program: who may ask it is root everywhere, so admins alone may.
	UpgradeOpen  = define[*pb.UpgradeNodeRequest, *pb.StreamOpenReply](subject.Node("*", "upgrade.open"), "node-agent", Writes, Admins)
	UpgradeState = define[*pb.Empty, *pb.UpgradeState](subject.Node("*", "upgrade.state"), "node-agent", Reads, Admins)
	MeshApplied  = atNode[*pb.MeshAppliedRequest, *pb.Empty]("ingress-mesh", "mesh.applied", Reads)
	// What the broker that holds the lease of the managers asks of the others.
	BusReach   = define[*pb.ReachRequest, *pb.ReachReply](subject.Node("*", "bus.reach"), "bus", Reads, Managers)
	BusWitness = define[*pb.WitnessRequest, *pb.Empty](subject.Node("*", "bus.witness"), "bus", Writes, Managers)
	BusRetire  = define[*pb.RetireRequest, *pb.Empty](subject.Node("*", "bus.retire"), "bus", Writes, Managers)
	// BusSelf is asked by a manager that starts, of whoever runs as the same node.
	BusSelf    = define[*pb.BusSelfRequest, *pb.SelfReply](subject.Node("*", "bus.self"), "bus", Reads, Managers)
	StoreState = atNode[*pb.StoreStateRequest, *pb.StoreStateReply]("bus", "store.state", Reads)
)

// Announcement is a message that is published and not answered.
type Announcement struct {
	Subject string // with * and >
	From    string // who publishes it: a service, or the broker when a key is written
	Message protoreflect.MessageType
}

// Announcements are all of them.
var Announcements = []Announcement{
	{subject.AllHeartbeats, "node-agent", (*pb.Heartbeat)(nil).ProtoReflect().Type()},
	{subject.Path("*"), "ingress-mesh", (*pb.MeshPathReport)(nil).ProtoReflect().Type()},
	{subject.Push("*"), "the broker, of task.<node>", (*pb.NodeTasks)(nil).ProtoReflect().Type()},
	{subject.PushFiles("*"), "state", (*pb.Empty)(nil).ProtoReflect().Type()},
	{subject.PushRole("*"), "state", (*pb.Empty)(nil).ProtoReflect().Type()},
	{subject.AllManagerBeats, "bus", (*pb.ManagerBeat)(nil).ProtoReflect().Type()},
	{subject.AllNet, "the broker, of endpoint.<scope>.<item>", (*pb.MeshRecord)(nil).ProtoReflect().Type()},
	{subject.AllEvents, "everybody", (*pb.Event)(nil).ProtoReflect().Type()},
	{subject.AllSeen, "everybody, for viewers", (*pb.Event)(nil).ProtoReflect().Type()},
}

// ForPeople adds to the list what people ask.
func ForPeople[Q, R proto.Message](service, verb string, effect Effect, callers Callers) Endpoint[Q, R] {
	kind, verb, _ := strings.Cut(verb, ".")
	return define[Q, R](subject.API(kind, verb), service, effect, callers)
}

// node defines what nodes ask of a service, whose first name in subjects is short.
func node[Q, R proto.Message](service, short, verb string, effect Effect) Endpoint[Q, R] {
	return define[Q, R](subject.Svc(short, verb, "*"), service, effect, Nodes)
}

// atNode defines what is asked of one node.
func atNode[Q, R proto.Message](service, verb string, effect Effect) Endpoint[Q, R] {
	return define[Q, R](subject.Node("*", verb), service, effect, Operators)
}
