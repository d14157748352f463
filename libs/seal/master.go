package seal

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/pki"
	pb "skep.dev/proto/skep/v1"
)

// A new manager's vault asks one that is open for the master key. What it signs is good for that alone (a statement of its
// own purpose), for one cluster, for a while and for the key it made for this one answer. So nobody gets the key with what a
// manager signed for something else, and an answer that was recorded opens nowhere.

const purposeMaster = "the master key asked for"

// MasterAsk is one question for the master key.
type MasterAsk struct {
	Request *pb.DeliverRequest

	reader  *Reader
	cluster string
}

// AskMaster signs the question of the manager whose certificate src is. Close it.
func AskMaster(src pki.Source, now time.Time) (*MasterAsk, error) {
	leaf := src.Certificate().Leaf
	if leaf == nil {
		return nil, errors.New("ask for the master key: there is no certificate to ask with")
	}
	id, err := pki.FromCertificate(leaf)
	if err != nil {
		return nil, err
	}
	reader, err := NewReader()
	if err != nil {
		return nil, err
	}
	text, err := proto.Marshal(&pb.MasterAsk{NodeId: id.NodeID, ClusterId: id.ClusterID, Reader: reader.Key(), AskedAt: timestamppb.New(now)})
	if err != nil {
		return nil, fmt.Errorf("ask for the master key: %w", err)
	}
	a := &MasterAsk{Request: &pb.DeliverRequest{Ask: text}, reader: reader, cluster: id.ClusterID}
	a.Request.Signature, a.Request.CertDer, err = pki.SignStatement(src, purposeMaster, text)
	return a, err
}

// ErrCluster: the answer is of another cluster. Asking again does not help.
var ErrCluster = errors.New("the master key is another cluster's")

// Open opens the answer, which a vault of this cluster must have sealed for this question.
func (a *MasterAsk) Open(roots []*x509.Certificate, r *pb.MasterReply) (*pb.MasterKey, error) {
	if id := r.GetKey().GetClusterId(); id != a.cluster {
		return nil, fmt.Errorf("%w: this manager is of cluster %s, the vault that answered of %s", ErrCluster, a.cluster, id)
	}
	m := &pb.MasterKey{}
	err := errors.New("no root is trusted")
	for _, root := range roots {
		if err = a.reader.Open(root, r.GetKey(), r.GetSealed(), m); err == nil {
			break
		}
	}
	switch {
	case err != nil:
		return nil, err
	case !bytes.Equal(m.Ask, Digest(a.Request)):
		err = errors.New("the answer is to another question")
	case m.ClusterId != a.cluster:
		err = fmt.Errorf("%w: this manager is of cluster %s, the answer of %s", ErrCluster, a.cluster, m.ClusterId)
	}
	if err != nil {
		Wipe(m.Master)
		return nil, err
	}
	return m, nil
}

// Close forgets the private half.
func (a *MasterAsk) Close() { a.reader.Close() }

// AskedMaster is what a manager asks for, and who it is: one of the roots certifies it.
func AskedMaster(roots []*x509.Certificate, r *pb.DeliverRequest) (*pb.MasterAsk, pki.Identity, error) {
	ask := &pb.MasterAsk{}
	id, err := asked(roots, r, purposeMaster, ask)
	if err == nil && ask.NodeId != id.NodeID {
		err = fmt.Errorf("node %s asks for the master key in the name of node %s", id.NodeID, ask.NodeId)
	}
	if err != nil {
		return nil, id, err
	}
	return ask, id, nil
}
