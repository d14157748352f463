package vault

import (
	"errors"
	"fmt"
	"os"
	"time"

	"go.uber.org/zap"

	"skep.dev/libs/backup"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/pki"
	"skep.dev/libs/subject"
)

// RestoreParams describes the first manager of a cluster that is restored from a backup.
type RestoreParams struct {
	// Dir is the vault's directory (<data-dir>/vault).
	Dir string
	// Hosts are the addresses the manager advertises.
	Hosts []string
	// Expiry is the life of its certificate (0 = pki.DefaultExpiry).
	Expiry time.Duration
	// Master and Content are the backup's.
	Master  []byte
	Content backup.Content
}

// Restore makes a machine the first manager of a restored cluster, as Bootstrap does of a new one: the master key as the
// cluster has it rest, and a certificate of the cluster's own root, for a new node. The store is for others to fill.
func Restore(p RestoreParams) (*Bootstrapped, error) {
	if p.Expiry == 0 {
		p.Expiry = pki.DefaultExpiry
	}
	if len(p.Master) != masterSize {
		return nil, errors.New("restore the vault: the backup's master key is none")
	}
	s, err := newSealer(p.Master)
	if err != nil {
		return nil, err
	}
	a, lock, err := vaultOf(s, p.Content)
	if err != nil {
		return nil, fmt.Errorf("restore the vault: %w", err)
	}
	key, csrDER, err := pki.NewKeyAndCSR()
	if err != nil {
		return nil, err
	}
	csr, err := pki.ParseCSR(csrDER)
	if err != nil {
		return nil, err
	}
	b := &Bootstrapped{ClusterID: a.current.ClusterID(), NodeID: pki.NodeIDFor(csr), CADigest: pki.Digest(a.token()), Key: key}
	leaf, err := a.signs.Sign(csrDER, pki.Identity{NodeID: b.NodeID, Role: pki.Manager, Hosts: p.Hosts}, p.Expiry)
	if err != nil {
		return nil, fmt.Errorf("restore the vault: %w", err)
	}
	b.Cert, b.CA = a.certificate(leaf, time.Now())
	if err := os.MkdirAll(p.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("restore the vault: %w", err)
	}
	d := disk{dir: p.Dir, log: zap.NewNop()}
	for _, name := range []string{masterFile, sealedFile} {
		if _, err := os.Lstat(d.path(name)); err == nil {
			return nil, fmt.Errorf("restore the vault: %s exists: this machine holds a cluster's keys already; skep leave --force removes them", d.path(name))
		}
	}
	if !lock.Info().GetOn() {
		return b, d.writeClear(p.Master)
	}
	b.UnlockKey = lock.key.Text()
	return b, d.writeSealed(lock.key, lock.info, p.Master)
}

// vaultOf reads the roots and the unlock key out of a backup.
func vaultOf(s *sealer, c backup.Content) (a *authorities, lock *lockRecord, err error) {
	picture := lockPicture{changed: make(chan struct{}, 1)}
	picture.reset()
	for _, e := range c[subject.Secret] {
		switch f, _ := keys.Of(subject.Secret, e.Key); f {
		case keys.CA:
			var r caRecord
			if err := s.open(e.Key, append([]byte(nil), e.Value...), &r); err != nil {
				return nil, nil, err
			}
			if a, err = r.read(e.Revision); err != nil {
				return nil, nil, err
			}
		case keys.Unlock:
			if err := picture.take(s, kv.Entry{Key: e.Key, Value: append([]byte(nil), e.Value...), Revision: e.Revision}); err != nil {
				return nil, nil, err
			}
		}
	}
	if a == nil {
		return nil, nil, errors.New("the cluster's CA is not in the backup")
	}
	return a, picture.now(), nil
}
