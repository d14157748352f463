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

	"skep.dev/libs/api"
	"skep.dev/libs/keys"
	"skep.dev/libs/subject"
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

// messageOf names the message that travels on a subject, or "".
func messageOf(subj string, reply bool) string {
	if t := strings.Split(subj, "."); len(t) >= 3 && t[0] == "$KV" {
		return valueOf(subject.Bucket(t[1]), strings.Join(t[2:], "."))
	}
	if v := api.Of(subj); v != nil {
		if reply {
			return string(v.Reply.Descriptor().Name())
		}
		return string(v.Request.Descriptor().Name())
	}
	for _, a := range api.Announcements {
		if subject.Matches(a.Subject, subj) {
			return string(a.Message.Descriptor().Name())
		}
	}
	return ""
}

// valueOf names the message stored under a key, "" for what is no message.
func valueOf(bucket subject.Bucket, key string) string {
	if f, _ := keys.Of(bucket, key); f != nil && f.Value != nil {
		return string(f.Value.Descriptor().Name())
	}
	return ""
}
