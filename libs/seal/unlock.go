package seal

import (
	"crypto/x509"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nkeys"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/pki"
	pb "skep.dev/proto/skep/v1"
)

// A locked manager cannot open the vault's key, so the unlock key is sealed to one that it made when it started and that
// its own certificate vouches for. Who sends it asks for a certain manager: another's door does not pass for it.

const purposeDoor = "the door of a locked vault"

// Door is the key pair of a locked manager.
type Door struct {
	pair   nkeys.KeyPair
	public *pb.VaultDoor
}

// NewDoor makes one for the node of the certificate.
func NewDoor(src pki.Source) (*Door, error) {
	pair, err := nkeys.CreateCurveKeys()
	if err != nil {
		return nil, fmt.Errorf("make a curve key: %w", err)
	}
	xkey, err := pair.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("make a curve key: %w", err)
	}
	leaf := src.Certificate().Leaf
	if leaf == nil {
		return nil, fmt.Errorf("make a curve key: there is no certificate to vouch for it")
	}
	id, err := pki.FromCertificate(leaf)
	if err != nil {
		return nil, err
	}
	d := &Door{pair, &pb.VaultDoor{NodeId: id.NodeID, ClusterId: id.ClusterID, Xkey: xkey}}
	d.public.Signature, d.public.CertDer, err = pki.SignStatement(src, purposeDoor, doorText(d.public))
	return d, err
}

func doorText(d *pb.VaultDoor) []byte {
	return []byte(strings.Join([]string{d.GetClusterId(), d.GetNodeId(), d.GetXkey()}, "\n"))
}

// Public is the public half, with the certificate's word for it.
func (d *Door) Public() *pb.VaultDoor { return proto.CloneOf(d.public) }

// Close forgets the private half.
func (d *Door) Close() { d.pair.Wipe() }

// ToDoor seals an unlock key's text to a locked manager, after checking that the door is that manager's.
func ToDoor(ca *x509.Certificate, d *pb.VaultDoor, node, text string) (*pb.UnlockRequest, error) {
	cert, err := x509.ParseCertificate(d.GetCertDer())
	if err != nil {
		return nil, fmt.Errorf("read the certificate of locked manager %s: %w", node, err)
	}
	if err := pki.Verify(cert, []*x509.Certificate{ca}, x509.ExtKeyUsageServerAuth, time.Time{}); err != nil {
		return nil, fmt.Errorf("check the certificate of locked manager %s: %w", node, err)
	}
	id, err := pki.FromCertificate(cert)
	if err != nil {
		return nil, err
	}
	if id.Role != pki.Manager || id.NodeID != node || d.GetNodeId() != node || d.GetClusterId() != id.ClusterID {
		return nil, fmt.Errorf("check locked manager %s: the key to seal to is that of %s %s, which is not it", node, strings.TrimPrefix(string(id.Role), "skep-"), id.NodeID)
	}
	if err := pki.CheckStatement(cert, purposeDoor, doorText(d), d.GetSignature()); err != nil {
		return nil, fmt.Errorf("check the key of locked manager %s: %w: its certificate does not vouch for it", node, err)
	}
	clear, err := proto.Marshal(&pb.UnlockAttempt{NodeId: node, ClusterId: id.ClusterID, Text: text})
	if err != nil {
		return nil, fmt.Errorf("seal the unlock key: %w", err)
	}
	defer Wipe(clear)
	sealed, err := sealOnce(clear, d.GetXkey())
	if err != nil {
		return nil, err
	}
	return &pb.UnlockRequest{Xkey: d.GetXkey(), Sealed: sealed}, nil
}

// Open reads what was sealed to the door.
func (d *Door) Open(r *pb.UnlockRequest) (text string, err error) {
	if r.GetXkey() != d.public.Xkey {
		return "", ErrOpen
	}
	clear, err := openOnce(d.pair, r.GetSealed())
	if err != nil {
		return "", err
	}
	defer Wipe(clear)
	var a pb.UnlockAttempt
	if proto.Unmarshal(clear, &a) != nil || a.NodeId != d.public.NodeId || a.ClusterId != d.public.ClusterId {
		return "", ErrOpen
	}
	return a.Text, nil
}
