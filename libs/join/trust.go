package join

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"
	"google.golang.org/protobuf/types/known/timestamppb"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/pki"
	"skep.dev/libs/rpc"
)

// A rotation of the root reaches a node in two ways: the vault asks it (api.NodeCertificate), and it asks the vault when it
// starts and whenever it is connected again. Either way it is the vault's answer that counts, and a new root is taken only
// if one that is trusted already vouches for it.

// again bounds the pause before a node asks after it was connected, and before it connects again with a certificate of
// another root: thousands do at once. The vault keeps the old root for longer (services/secrets-vault, settleFor).
const again = 5 * time.Second

// serve answers the vault, and asks it whenever the node is connected, until stop.
func (r *Renewal) serve(ctx context.Context) (stop func(), err error) {
	srv, err := rpc.NewServer(r.NC, rpc.Config{Name: "skep-certificate", Version: r.Version, Description: "the certificate of a node", Log: r.Log})
	if err != nil {
		return nil, fmt.Errorf("serve the node's certificate: %w", err)
	}
	err = api.Handle(srv, api.NodeCertificate.At(r.Store.Identity().NodeID), func(ctx context.Context, _ *skepv1.Empty) (*skepv1.CertificateReply, error) {
		if err := r.refresh(ctx); err != nil {
			return nil, err
		}
		issuer, roots := holding(r.Store)
		return &skepv1.CertificateReply{Issuer: issuer, Roots: roots, NotAfter: timestamppb.New(r.Store.Leaf().NotAfter)}, nil
	})
	if err != nil {
		return nil, errors.Join(err, srv.Close())
	}
	states := r.NC.StatusChanged(nats.CONNECTED)
	asking, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			if r.NC.IsConnected() {
				if err := r.refresh(asking); err != nil && asking.Err() == nil {
					r.Log.Debug("the vault was not asked which roots to trust", zap.Error(err))
				}
			}
			select {
			case <-asking.Done():
				return
			case _, open := <-states:
				if !open {
					return
				}
			}
			select {
			case <-asking.Done():
				return
			case <-time.After(rand.N(again)):
			}
		}
	}()
	return func() {
		cancel()
		<-ended
		r.NC.RemoveStatusListener(states)
		if err := srv.Close(); err != nil {
			r.Log.Debug("stop serving the node's certificate", zap.Error(err))
		}
	}, nil
}

func holding(s *pki.Store) (issuer string, roots []string) {
	for _, c := range s.Roots() {
		roots = append(roots, pki.Digest(c))
	}
	return pki.Digest(s.CA()), roots
}

// refresh asks the vault which roots to trust and whether to renew, and does so.
func (r *Renewal) refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	r.mu.Lock()
	defer r.mu.Unlock()
	node := r.Store.Identity().NodeID
	issuer, held := holding(r.Store)
	reply, err := api.Call(ctx, r.NC, api.VaultTrust.At(node), &skepv1.TrustRequest{Issuer: issuer, Roots: held})
	if err != nil {
		return fmt.Errorf("ask which roots to trust: %w", err)
	}
	if reply.Renew {
		if err := r.onceLocked(ctx); err != nil {
			return err
		}
		r.Log.Info("certificate renewed: the root is rotated", zap.String("root", pki.Digest(r.Store.CA())), zap.Time("until", r.Store.Leaf().NotAfter))
		select {
		case r.due <- struct{}{}:
		default:
		}
		return nil
	}
	var chain []*x509.Certificate
	if len(reply.ChainPem) > 0 {
		if chain, err = pki.ParseCertificates(reply.ChainPem); err != nil {
			return fmt.Errorf("read the roots to trust: %w", err)
		}
	}
	roots, err := r.follow(chain, reply.RootsPem)
	if err != nil {
		return fmt.Errorf("read the roots to trust: %w", err)
	}
	if slices.EqualFunc(roots, r.Store.Roots(), (*x509.Certificate).Equal) && r.Store.Shows(chain) {
		return nil
	}
	if err := r.Store.Trust(roots, chain); err != nil {
		return err
	}
	r.Log.Info("the cluster's roots changed", zap.Int("trusted", len(roots)))
	return nil
}
