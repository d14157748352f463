package keys

import (
	"skep.dev/libs/subject"
	pb "skep.dev/proto/skep/v1"
)

// Objects that people make, and the nodes of the cluster.
var (
	Cluster = add(subject.Spec, "cluster", State, &pb.Cluster{}, "")
	Service = add(subject.Spec, "service.<service>", State, &pb.Service{}, "without its status")
	Node    = add(subject.Spec, "node.<node>", State, &pb.NodeObject{}, "")
	Network = add(subject.Spec, "network.<network>", State, &pb.Network{}, "")
	Stack   = add(subject.Spec, "stack.<stack>", State, &pb.Stack{}, "without its spec")
)

// What belongs to one object at a time: whoever creates the key has it. index.go builds those that are no plain ids.
var (
	ServiceName = add(subject.Spec, "idx.service.<name, lower case, base32hex>", State, nil, "the service's id: its creation makes the name unique")
	NetworkName = add(subject.Spec, "idx.network.<name, lower case, base32hex>", State, nil, "the network's id")
	StackName   = add(subject.Spec, "idx.stack.<name, lower case, base32hex>", State, nil, "the stack's id")
	NodeNumber  = add(subject.Spec, "idx.nodenum.<number>", State, nil, "the node's id")
	Port        = add(subject.Spec, "idx.port.<protocol>.<port>", State, nil,
		"the id of the service that has it on the mesh, or `host <id> <id>…` of those that have it on their nodes (any number)")
	VNI    = add(subject.Spec, "idx.vni.<VXLAN id>", State, nil, "the network's id")
	Tunnel = add(subject.Spec, "idx.wgport.<UDP port>", State, nil, "the id of the encrypted network whose nodes use it")
	Subnet = add(subject.Spec, "idx.subnet.<address>-<bits>", State, nil, "the network's id; only subnets that nobody named are exclusive")
	VIP    = add(subject.Spec, "idx.vip.<network>.<a-b-c-d>", State, nil, "the service's id")
	// Depends is written by every update that adds a dependency, so that two of them notice each other.
	Depends = add(subject.Spec, "idx.depends", State, nil, "the id of the service that was given a dependency last")
)

// Revision is one of a service: RevisionKey.
var Revision = add(subject.Rev, "service.<service>.<number>", State, &pb.Revision{}, "")

// StackRevision is one of a stack: StackRevisionKey.
var StackRevision = add(subject.Rev, "stack.<stack>.<number>", State, &pb.StackRevision{}, "")

// What should run where. A node's tasks may be spread over pages <node>.<n>.
var (
	TaskFence = add(subject.Task, "fence", Scheduler, &pb.Fence{}, "every write of the leading scheduler is conditional on it")
	Rollout   = add(subject.Task, "rollout.<service>", Scheduler, &pb.Rollout{}, "")
	// Claim is of one volume: ClaimKey.
	Claim     = add(subject.Task, "claim.<driver and name, hashed>", Scheduler, &pb.VolumeClaim{}, "which node may write a volume with a single writer")
	Unplaced  = add(subject.Task, "_.<service>.<n>", Scheduler, &pb.NodeTasks{}, "tasks without a node, at most 1,000 records each")
	NodeTasks = add(subject.Task, "<node>", Scheduler, &pb.NodeTasks{}, "")
)

// What is observed.
var (
	Status      = add(subject.Status, "<node>", State, &pb.NodeStatus{}, "as the node reported it")
	Description = add(subject.NodeB, "desc.<node>", State, &pb.NodeDescription{}, "")
	Live        = add(subject.NodeB, "live.<node>", Health, &pb.NodeLive{}, "")
	Managers    = add(subject.NodeB, "managers", Bus, &pb.ManagerSet{}, "the group that keeps the store")
)

// What nodes are told of the network: endpoint.go has scopes and items.
var (
	EndpointFence = add(subject.Endpoint, "fence", Mesh, &pb.Fence{}, "every write of the leading mesh controller is conditional on it")
	Endpoint      = add(subject.Endpoint, "<scope>.<item>", Mesh, &pb.MeshRecord{}, "")
)

// What the vault keeps.
var (
	CA       = add(subject.Secret, "ca", Vault, nil, "sealed under the master key")
	Token    = add(subject.Secret, "token.<role>", Vault, nil, "sealed under the master key")
	Curve    = add(subject.Secret, "curve", Vault, nil, "sealed under the master key: the key that clients seal values to")
	Ledger   = add(subject.Secret, "ledger", Vault, nil, "sealed under the master key (SecretLedger): which record of each object is the newest")
	Object   = add(subject.Secret, "object.<id>", Vault, nil, "sealed under the master key (SecretRecord): a secret, a config, a registry's credentials, without values")
	Rotation = add(subject.Secret, "rotation", Vault, &pb.CAProgress{}, "in clear: how far a rotation of the root is")
	Value    = add(subject.Value, "<id>.<random>", Vault, &pb.StoredValue{}, "sealed under a key of its own, which is sealed under the master key; the object's record says which version it is")
	// Unlock is not of the form of the others: a manager that cannot open anything has to read part of it.
	Unlock      = add(subject.Secret, "unlock", Vault, &pb.AutolockRecord{}, "the unlock key, sealed under the master key, and the master key, sealed under the unlock key")
	ManagerLock = add(subject.Secret, "manager.<node>", Vault, &pb.ManagerLock{}, "in clear: whether a manager is locked, and which unlock key opens its disk")
	BackupKey   = add(subject.Secret, "backup", Vault, nil, "sealed under the master key (BackupKeyRecord): what scheduled backups are sealed under, if not under the unlock key")
	User        = add(subject.Secret, "user.<serial>", Vault, &pb.UserCertificate{},
		"in clear: brokers follow it and refuse what is revoked; it goes two hours after the certificate's end")
)

// Checkpoint is a key of every bucket but lease (kv.CheckpointKey): feeds do not show it.
var Checkpoint = add("", "checkpoint", Bus, &pb.Checkpoint{}, "which messages were live when: deletions rest on it (libs/kv)")

// Who leads: the holder, a plain value that expires.
var (
	LeaseScheduler = add(subject.Lease, "scheduler", Scheduler, nil, "its holder")
	LeaseHealth    = add(subject.Lease, "health", Health, nil, "its holder")
	LeaseVault     = add(subject.Lease, "vault", Vault, nil, "its holder, while the root is rotated")
	LeaseMesh      = add(subject.Lease, "mesh", Mesh, nil, "its holder")
	LeaseManagers  = add(subject.Lease, "managers", Bus, nil, "its holder: lets managers into the group and out of it")
	LeaseStacks    = add(subject.Lease, "stacks", State, nil, "its holder: makes the cluster follow what stacks ask for")
)
