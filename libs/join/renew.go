package join

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/pki"
)

// Renewal keeps a node's certificate alive.
type Renewal struct {
	NC    *nats.Conn // as the node
	Store *pki.Store
	Log   *zap.Logger
	// Renewed is called after each renewal (nil = nothing). Connections made before keep the old certificate and are
	// closed by the managers when it ends; nats.Conn.ForceReconnect moves one over at a better moment.
	Renewed func()
}

// Run renews the certificate at a random point between 50 and 80 % of its life, again and again, until ctx ends (nil) or
// the cluster says that the node was removed.
func (r Renewal) Run(ctx context.Context) error {
	if r.Log == nil {
		r.Log = zap.NewNop()
	}
	at := due(r.Store)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Until(at)):
		}
		err := r.once(ctx)
		life := lifetime(r.Store)
		switch {
		case err == nil:
			at = due(r.Store)
			r.Log.Info("certificate renewed", zap.Time("until", r.Store.Leaf().NotAfter))
			if r.Renewed != nil {
				r.Renewed()
			}
		case ctx.Err() != nil:
			return nil
		case fault.Is(err, fault.CodeDenied):
			return err
		default:
			// Ten attempts and more fit in what is left; 5,000 nodes do not repeat in step.
			wait := min(max(life/100, 200*time.Millisecond), time.Hour)
			at = time.Now().Add(wait/2 + rand.N(wait))
			r.Log.Warn("certificate not renewed; trying again", zap.Error(err), zap.Time("until", r.Store.Leaf().NotAfter), zap.Time("next", at))
		}
	}
}

func (r Renewal) once(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	key, csr, err := pki.NewKeyAndCSR()
	if err != nil {
		return err
	}
	node := r.Store.Identity().NodeID
	reply, err := api.Call(ctx, r.NC, api.VaultRenew.At(node), &skepv1.RenewRequest{NodeId: node, CsrDer: csr})
	if err != nil {
		return fmt.Errorf("renew the certificate of %s: %w", node, err)
	}
	ca, err := pki.ParseCertificate(reply.CaPem)
	if err == nil && !ca.Equal(r.Store.CA()) {
		err = errors.New("it comes with another CA")
	}
	if err != nil {
		return fmt.Errorf("renew the certificate of %s: %w", node, err)
	}
	return r.Store.Save(reply.CertPem, key, reply.CaPem)
}

// lifetime is how long the certificate was meant to live; its beginning is dated back.
func lifetime(s *pki.Store) time.Duration {
	c := s.Leaf()
	return max(c.NotAfter.Sub(c.NotBefore)-pki.Backdate, time.Second)
}

func due(s *pki.Store) time.Time {
	life := lifetime(s)
	return s.Leaf().NotAfter.Add(-life/2 + rand.N(life*3/10))
}
