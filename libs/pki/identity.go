package pki

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"slices"
	"strings"
)

// Role is what a certificate lets its holder be; it stands in the certificate's OU.
type Role string

// The roles.
const (
	Manager Role = "skep-manager"
	Worker  Role = "skep-worker"
	// Witness is a manager that runs a broker and nothing else. Managers take it for one of theirs on their routes; to nodes and
	// people it is none.
	Witness Role = "skep-witness"
	User    Role = "skep-user"
)

// What a user may do; it stands in the certificate's title.
const (
	Admin    = "admin"
	Operator = "operator"
	Viewer   = "viewer"
)

// UserRoles are what a user may be.
var UserRoles = []string{Admin, Operator, Viewer}

// ServerName is the name every manager's certificate carries and every client asks for, whatever address it dialled.
const ServerName = string(Manager)

// peerNames are the names that the certificates of those who keep the store carry.
var peerNames = map[Role]string{Manager: ServerName, Witness: string(Witness)}

// Identity is who a certificate says its holder is.
type Identity struct {
	NodeID    string // CN; for users user-<name>
	Role      Role
	ClusterID string
	UserRole  string   // users only: one of UserRoles
	Hosts     []string // managers and witnesses only, when signing: extra names and addresses for clients that insist on them
}

var oidTitle = asn1.ObjectIdentifier{2, 5, 4, 12}

func (id Identity) name() pkix.Name {
	n := pkix.Name{CommonName: id.NodeID, OrganizationalUnit: []string{string(id.Role)}, Organization: []string{id.ClusterID}}
	if id.Role == User {
		n.ExtraNames = []pkix.AttributeTypeAndValue{{Type: oidTitle, Value: id.UserRole}}
	}
	return n
}

// check refuses identities the permissions could not be derived from. The id becomes a subject token, so it must be one.
func (id Identity) check() error {
	if id.NodeID == "" || strings.ContainsAny(id.NodeID, ".*> \t\r\n") {
		return fmt.Errorf("certify %q: an identity is one word without dots, spaces and wildcards", id.NodeID)
	}
	switch id.Role {
	case Manager, Worker, Witness:
		if id.UserRole != "" {
			return fmt.Errorf("certify %s: only users have a user role", id.NodeID)
		}
	case User:
		if !slices.Contains(UserRoles, id.UserRole) {
			return fmt.Errorf("certify %s: unknown user role %q: it is %s", id.NodeID, id.UserRole, strings.Join(UserRoles, ", "))
		}
	default:
		return fmt.Errorf("certify %s: unknown role %q", id.NodeID, id.Role)
	}
	return nil
}

// FromCertificate reads the identity of a certificate. The caller has verified the chain.
func FromCertificate(c *x509.Certificate) (Identity, error) {
	if len(c.Subject.OrganizationalUnit) != 1 || len(c.Subject.Organization) != 1 {
		return Identity{}, fmt.Errorf("the certificate of %q names %d roles and %d clusters, not one of each: it was not made by skep",
			c.Subject.CommonName, len(c.Subject.OrganizationalUnit), len(c.Subject.Organization))
	}
	id := Identity{
		NodeID:    c.Subject.CommonName,
		Role:      Role(c.Subject.OrganizationalUnit[0]),
		ClusterID: c.Subject.Organization[0],
	}
	for _, a := range c.Subject.Names {
		if a.Type.Equal(oidTitle) {
			id.UserRole, _ = a.Value.(string)
		}
	}
	if err := id.check(); err != nil {
		return Identity{}, fmt.Errorf("read the identity of a certificate: %w", err)
	}
	return id, nil
}
