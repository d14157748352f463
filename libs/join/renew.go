package join

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/pki"
)

// turnWithin bounds one request for the certificate of another role; whoever asks repeats it.
const turnWithin = 3 * time.Second

// ErrRole: the vault certifies the node in another role than it was to have.
var ErrRole = errors.New("the vault does not certify it yet")

// Renewal keeps a node's certificate alive, and the roots it trusts those of the cluster. Make it with its fields and call
// Run once.
type Renewal struct {
	NC *nats.Conn // as the node
	// Local is a connection that needs no certificate (a manager's own broker, in process), nil for none: with it a manager
	// whose certificate ended while it was off gets another.
	Local func() *nats.Conn
	Store *pki.Store
	Log   *zap.Logger
	// Renewed is called after each renewal (nil = nothing). Connections made before keep the old certificate and are
	// closed by the managers when it ends; nats.Conn.ForceReconnect moves one over at a better moment.
	Renewed func()
	Version string

	mu  sync.Mutex    // one change of the store at a time
	due chan struct{} // the certificate changed outside the loop
}

// Run renews the certificate at a random point between 50 and 80 % of its life, again and again, until ctx ends (nil) or
// the cluster says that the node was removed.
func (r *Renewal) Run(ctx context.Context) error {
	if r.Log == nil {
		r.Log = zap.NewNop()
	}
	r.due = make(chan struct{}, 1)
	stop, err := r.serve(ctx)
	if err != nil {
		return err
	}
	defer stop()
	at := due(r.Store)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.due:
			at = due(r.Store)
			r.moved(ctx)
			continue
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
			if until := r.Store.Leaf().NotAfter; time.Now().After(until) {
				r.Log.Error("the certificate of this node has expired: the managers do not let it in. Leave and join again: skep leave --force, then what skep join-token worker says on a manager",
					zap.Time("expired", until), zap.Time("next", at), zap.Error(err))
				continue
			}
			r.Log.Warn("certificate not renewed; trying again", zap.Error(err), zap.Time("until", r.Store.Leaf().NotAfter), zap.Time("next", at))
		}
	}
}

func (r *Renewal) once(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.onceLocked(ctx)
}

// Turn gets the certificate of another role, once the cluster gave it to the node; ErrRole while it did not. Connections made
// before keep the old one, and the loop of Run finds out when it wakes.
func (r *Renewal) Turn(ctx context.Context, role pki.Role) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.Store.Identity().Role == role {
		return nil
	}
	// The vault that was asked may be that of a manager which is just leaving.
	ctx, cancel := context.WithTimeout(ctx, turnWithin)
	defer cancel()
	if err := r.onceLocked(ctx); err != nil {
		return err
	}
	if got := r.Store.Identity().Role; got != role {
		return fmt.Errorf("get the certificate of a %s: %w", role, ErrRole)
	}
	return nil
}

// conn is the connection to ask on.
func (r *Renewal) conn() *nats.Conn {
	if r.Local != nil && !r.NC.IsConnected() {
		if nc := r.Local(); nc != nil {
			return nc
		}
	}
	return r.NC
}

func (r *Renewal) onceLocked(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	key, csr, err := pki.NewKeyAndCSR()
	if err != nil {
		return err
	}
	node := r.Store.Identity().NodeID
	reply, err := api.Call(ctx, r.conn(), api.VaultRenew.At(node), &skepv1.RenewRequest{NodeId: node, CsrDer: csr})
	if err != nil {
		return fmt.Errorf("renew the certificate of %s: %w", node, err)
	}
	chain, err := pki.ParseCertificates(reply.CertPem)
	if err == nil {
		_, err = r.follow(chain[1:], reply.CaPem)
	}
	if err != nil {
		return fmt.Errorf("renew the certificate of %s: %w", node, err)
	}
	return r.Store.Save(reply.CertPem, key, reply.CaPem)
}

// moved takes the connection over to a certificate that was renewed because the root is rotated. All nodes are asked within
// moments: they do not connect again in step, and not before the vault has its answer.
func (r *Renewal) moved(ctx context.Context) {
	if r.Renewed == nil {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(again/10 + rand.N(again*9/10)):
		r.Renewed()
	}
}

// follow reads the roots that a manager names, and takes none that is not vouched for by one that is trusted already.
func (r *Renewal) follow(chain []*x509.Certificate, text []byte) ([]*x509.Certificate, error) {
	roots, err := pki.ParseCertificates(text)
	if err == nil && !pki.Follows(r.Store.Roots(), chain, roots) {
		err = errors.New("it comes with another CA, for which none that is trusted vouches")
	}
	return roots, err
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
