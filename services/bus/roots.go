package bus

import (
	"crypto/sha256"
	"crypto/x509"
	"slices"

	"go.uber.org/zap"
)

// The roots that are trusted change while the broker runs, when the cluster's root is rotated (libs/pki asks for them at
// every handshake). Connections that came with a certificate of a root that was dropped end then: a root is rotated because
// somebody may have its key.

// rootKey names a root by its key, which it shares with what another root signed of it.
type rootKey [sha256.Size]byte

func keyOf(root *x509.Certificate) rootKey { return sha256.Sum256(root.RawSubjectPublicKeyInfo) }

// trusted notices that the roots changed.
type trusted struct{ last *x509.Certificate }

// sweep ends the connections of roots that are trusted no more, if they changed since the last time.
func (t *trusted) sweep(b *Bus) {
	roots := b.cfg.TLS.Roots()
	// A store that changes has certificates of its own making; the last one tells a root that came or went.
	last := roots[len(roots)-1]
	if last == t.last {
		return
	}
	t.last = last
	now := map[rootKey]bool{}
	for _, r := range roots {
		now[keyOf(r)] = true
	}
	n := 0
	for _, cid := range b.guests.signedBy(func(k rootKey) bool { return !now[k] }) {
		b.kick(cid)
		n++
	}
	if n > 0 {
		b.log.Info("connections closed: their certificates are of a root that was dropped", zap.Int("connections", n))
	}
}

// trusts reports whether a root is trusted now.
func (b *Bus) trusts(root *x509.Certificate) bool {
	return slices.ContainsFunc(b.cfg.TLS.Roots(), func(r *x509.Certificate) bool { return keyOf(r) == keyOf(root) })
}

// signed notes which root's key signed the certificate of a connection.
func (g *guests) signed(cid uint64, root rootKey) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if x := g.conns[cid]; x != nil {
		x.root = &root
	}
}

// signedBy is the connections whose certificates such a root signed.
func (g *guests) signedBy(such func(rootKey) bool) (cids []uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for cid, x := range g.conns {
		if x.root != nil && such(*x.root) {
			cids = append(cids, cid)
		}
	}
	return cids
}
