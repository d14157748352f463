package rpc

import (
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"skep.dev/libs/subject"
)

// Refuse answers every request of a subject with a fault, whatever is asked: for a service that is there and cannot serve
// yet. It takes the place of Handle and HandleNode, in their queue group.
func Refuse(s *Server, subj string, why func() error) error {
	info := micro.EndpointInfo{Name: endpointName(subj), Subject: subj, QueueGroup: subject.Queue}
	err := s.mon.add(info, func(e *endpoint, req *nats.Msg) {
		req.Subject = subject.FromNear(req.Subject)
		if req.Reply == "" || !mayHear(s.log, req) {
			return
		}
		code, text := s.fail(req, why())
		e.served(code, text, 0)
	}, alsoOn(subj)...)
	if err != nil {
		return fmt.Errorf("serve %s: %w", subj, err)
	}
	return nil
}
