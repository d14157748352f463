package cli

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/plain"
	"skep.dev/services/skep/cli/render"
)

func (a *app) decodeCommand() *cobra.Command {
	var typ, subj string
	var reply bool
	cmd := &cobra.Command{Use: "decode (--type TYPE | --subject SUBJECT)", Short: "Turn a message of skep's into JSON: for `nats sub --translate`", Args: noArgs,
		Long: "Read one message from the standard input and print it as JSON. The type is given, or follows from the subject:\n\n" +
			"    nats sub 'skep.v1.hb.*' --translate \"skep decode --subject {{Subject}}\"\n    nats req --raw skep.v1.api.node.list '' | skep decode --subject skep.v1.api.node.list --reply",
		RunE: func(*cobra.Command, []string) error {
			body, err := io.ReadAll(a.In)
			if err != nil {
				return fmt.Errorf("read the message: %w", err)
			}
			if b := strings.TrimSpace(string(body)); strings.HasPrefix(b, "{") {
				_, err := a.Out.Write(plain.JSON([]byte(b + "\n"))) // JSON already
				return err
			}
			name := typ
			if name == "" {
				if name = messageOf(subj, reply); name == "" {
					return Usagef("no message type is known for subject %q; give one with --type", subj)
				}
			}
			m, err := newMessage(name)
			if err != nil {
				return err
			}
			err = proto.Unmarshal(body, m)
			for err != nil && bytes.HasSuffix(body, []byte("\n")) {
				body = body[:len(body)-1] // `nats req --raw` ends what it prints with empty lines
				if again := proto.Unmarshal(body, m); again == nil {
					err = nil
				}
			}
			if err != nil {
				return fmt.Errorf("this is no %s: %w", name, err)
			}
			return render.JSONObject(a.Out, m)
		}}
	f := cmd.Flags()
	f.StringVar(&typ, "type", "", "Name of the message type: ServiceReply")
	f.StringVar(&subj, "subject", "", "Subject the message was sent to")
	f.BoolVar(&reply, "reply", false, "It is the reply to what was sent there")
	_ = cmd.RegisterFlagCompletionFunc("type", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return messageNames(), cobra.ShellCompDirectiveNoFileComp
	})
	return cmd
}

// pkg makes sure that skep's messages are registered.
var pkg = string(skepv1.File_skep_v1_api_proto.Package())

func newMessage(name string) (proto.Message, error) {
	t, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName(pkg + "." + strings.TrimPrefix(name, pkg+".")))
	if err != nil {
		return nil, Usagef("unknown message type %q", name)
	}
	return t.New().Interface(), nil
}

func messageNames() []string {
	var out []string
	protoregistry.GlobalTypes.RangeMessages(func(t protoreflect.MessageType) bool {
		if d := t.Descriptor(); string(d.ParentFile().Package()) == pkg {
			out = append(out, string(d.Name()))
		}
		return true
	})
	return out
}

// replies to requests whose reply is not named after the request.
var replies = map[string]string{
	"service.create": "ServiceReply", "service.update": "ServiceReply", "service.scale": "ServiceReply", "service.inspect": "ServiceReply", "service.rm": "ServiceReply",
	"service.list": "ListServicesReply", "service.revisions": "ListRevisionsReply", "service.explain": "ExplainReply", "plan.service": "PlanReply",
	"task.list": "ListTasksReply", "task.inspect": "TaskReply", "node.list": "ListNodesReply", "node.inspect": "NodeReply", "node.update": "NodeReply", "node.rm": "Empty",
	"node.admit": "NodeReply", "cluster.init": "ClusterReply", "cluster.inspect": "ClusterReply", "cluster.update": "ClusterReply", "event.list": "ListEventsReply",
	"token.get": "JoinTokenReply", "user.issue": "IssueUserReply", "user.issued": "IssuedUsersReply", "user.revoke": "RevokeUserReply", "image.resolve": "ResolveImageReply",
	"network.create": "NetworkReply", "network.inspect": "NetworkReply", "network.rm": "NetworkReply", "network.list": "ListNetworksReply", "mesh.network": "MeshNetworkReply",
}

var requests = map[string]string{
	"service.create": "CreateServiceRequest", "service.update": "UpdateServiceRequest", "service.scale": "ScaleServiceRequest", "service.inspect": "Ref", "service.rm": "RemoveServiceRequest",
	"service.list": "ListServicesRequest", "service.revisions": "ListRevisionsRequest", "service.explain": "ExplainRequest", "plan.service": "PlanRequest",
	"task.list": "ListTasksRequest", "task.inspect": "Ref", "node.list": "ListNodesRequest", "node.inspect": "Ref", "node.update": "UpdateNodeRequest", "node.rm": "RemoveNodeRequest",
	"node.admit": "AdmitNodeRequest", "cluster.init": "InitClusterRequest", "cluster.inspect": "Empty", "cluster.update": "UpdateClusterRequest", "event.list": "ListEventsRequest",
	"token.get": "JoinTokenRequest", "user.issue": "IssueUserRequest", "user.issued": "Empty", "user.revoke": "RevokeUserRequest", "image.resolve": "ResolveImageRequest",
	"network.create": "CreateNetworkRequest", "network.inspect": "Ref", "network.rm": "Ref", "network.list": "ListNetworksRequest", "mesh.network": "MeshNetworkRequest",
}

// messageOf names the message that travels on a subject, or "".
func messageOf(subj string, reply bool) string {
	pick := func(req, rep string) string {
		if reply {
			return rep
		}
		return req
	}
	t := strings.Split(subj, ".")
	if len(t) >= 3 && t[0] == "$KV" {
		return valueOf(t[1], strings.Join(t[2:], "."))
	}
	if len(t) < 3 || t[0] != "skep" {
		return ""
	}
	rest := strings.Join(t[3:], ".")
	switch t[2] {
	case "api":
		return pick(requests[rest], replies[rest])
	case "join":
		return pick("JoinRequest", "JoinReply")
	case "hb":
		return "Heartbeat"
	case "push":
		return "NodeTasks"
	case "event":
		return "Event"
	case "net":
		return "MeshRecord"
	case "svc":
		if len(t) < 5 {
			return ""
		}
		switch t[3] + "." + t[4] {
		case "state.snapshot":
			return pick("SnapshotRequest", "SnapshotReply")
		case "state.specs":
			return pick("SpecsRequest", "SpecsReply")
		case "state.status":
			return pick("NodeStatus", "StatusReply")
		case "state.describe":
			return pick("DescribeRequest", "DescribeReply")
		case "health.path":
			return "MeshPathReport"
		case "vault.renew":
			return pick("RenewRequest", "RenewReply")
		case "mesh.sync":
			return pick("MeshSyncRequest", "MeshSyncReply")
		case "mesh.lease":
			return pick("LeaseBlockRequest", "LeaseBlockReply")
		case "mesh.return":
			return pick("ReturnBlocksRequest", "ReturnBlocksReply")
		case "mesh.drain":
			return pick("DrainRequest", "DrainReply")
		}
	case "node":
		if len(t) < 5 {
			return ""
		}
		switch strings.Join(t[4:], ".") {
		case "exec.open":
			return pick("ExecRequest", "StreamOpenReply")
		case "logs.open":
			return pick("LogsRequest", "StreamOpenReply")
		case "image.load.open":
			return pick("LoadImageRequest", "StreamOpenReply")
		case "image.ls":
			return pick("ListImagesRequest", "ListImagesReply")
		case "image.rm":
			return pick("RemoveImageRequest", "RemoveImageReply")
		case "image.pull":
			return pick("PullImageRequest", "PullImageReply")
		case "stats":
			return pick("StatsRequest", "StatsReply")
		case "mesh.state":
			return pick("MeshStateRequest", "MeshStateReply")
		case "mesh.counters":
			return pick("MeshCountersRequest", "MeshCountersReply")
		case "mesh.trace":
			return pick("MeshTraceRequest", "MeshTraceReply")
		}
	}
	return ""
}

// valueOf names the message stored under a key.
func valueOf(bucket, key string) string {
	kind, _, _ := strings.Cut(key, ".")
	switch bucket {
	case "spec":
		return map[string]string{"cluster": "Cluster", "service": "Service", "node": "NodeObject", "network": "Network"}[kind]
	case "rev":
		return "Revision"
	case "endpoint":
		if kind == "fence" {
			return "Fence"
		}
		return "MeshRecord"
	case "task":
		switch kind {
		case "fence":
			return "Fence"
		case "rollout":
			return "Rollout"
		}
		return "NodeTasks"
	case "status":
		return "NodeStatus"
	case "node":
		return map[string]string{"desc": "NodeDescription", "live": "NodeLive"}[kind]
	}
	return ""
}
