package kv

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

type leaderMsg struct {
	Sequence uint64
	Header   nats.Header
	Data     []byte
	Time     time.Time
}

// leaderGet reads the last message of a subject through STREAM.MSG.GET, which only the stream's leader answers.
// jetstream.Stream.GetLastMsgForSubject would use Direct Get on these streams, which any replica answers, stale.
func leaderGet(ctx context.Context, js jetstream.JetStream, stream, subj string) (*leaderMsg, error) {
	req, err := json.Marshal(map[string]string{"last_by_subj": subj})
	if err != nil {
		return nil, err
	}
	ctx, cancel := withDefaultTimeout(ctx)
	defer cancel()
	type reply struct {
		Error   *jetstream.APIError `json:"error"`
		Message *struct {
			Sequence uint64    `json:"seq"`
			Header   string    `json:"hdrs"`
			Data     []byte    `json:"data"`
			Time     time.Time `json:"time"`
		} `json:"message"`
	}
	resp, err := askLed(ctx, func(ctx context.Context) (*reply, error) {
		r, err := js.Conn().RequestWithContext(ctx, "$JS.API.STREAM.MSG.GET."+stream, req)
		if err != nil {
			return nil, err
		}
		out := &reply{}
		if err := json.Unmarshal(r.Data, out); err != nil {
			return nil, err
		}
		if out.Error != nil && out.Error.ErrorCode != jetstream.JSErrCodeMessageNotFound {
			return nil, out.Error // perhaps that there is no leader, which is waited for
		}
		return out, nil
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", subj, err)
	}
	if resp.Message == nil {
		return nil, nil
	}
	out := &leaderMsg{Sequence: resp.Message.Sequence, Data: resp.Message.Data, Time: resp.Message.Time, Header: nats.Header{}}
	if resp.Message.Header != "" {
		raw, err := base64.StdEncoding.DecodeString(resp.Message.Header)
		if err != nil {
			return nil, fmt.Errorf("read %s: headers: %w", subj, err)
		}
		if out.Header, err = nats.DecodeHeadersMsg(raw); err != nil {
			return nil, fmt.Errorf("read %s: headers: %w", subj, err)
		}
	}
	return out, nil
}

func withDefaultTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, 10*time.Second)
}
