package bus

import (
	"crypto/subtle"
	"crypto/x509"
	"net"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"go.uber.org/zap"

	"skep.dev/libs/id"
	"skep.dev/libs/pki"
	"skep.dev/libs/subject"
)

const (
	accountName   = "SKEP"
	systemAccount = "SYS"

	// joinDeadline ends a connection without a certificate; a join takes milliseconds.
	joinDeadline = 10 * time.Second
	// replyWithin is how long after a request a node may answer it.
	replyWithin = time.Minute
	// servicesOfNode is how many services may share a node's connection, each of which answers `nats micro ls`: the agent,
	// what it does on managers, the mesh, the certificate, and room for one more.
	servicesOfNode = 5
	// repliesMost is how many messages a node may send to the inbox of one request. nats-server counts as one, too, each
	// delivery of the request to another subscription of the connection than the first.
	repliesMost = servicesOfNode - 1 + servicesOfNode
	// systemUser, as the user name of a manager's connection, asks for the system account.
	systemUser = "sys"
)

// clientAuth decides on every client connection. It is local and synchronous: it works without a JetStream quorum.
type clientAuth struct {
	bus *Bus
	srv *server.Server
}

// Check implements server.Authentication.
func (a *clientAuth) Check(c server.ClientAuthentication) bool {
	if c.Kind() != server.CLIENT {
		return false
	}
	st := c.GetTLSConnectionState()
	if st == nil {
		// TCP clients cannot get here without a handshake; only the pipe has none.
		return c.RemoteAddress().Network() == "pipe" && a.inProcess(c)
	}
	if len(st.VerifiedChains) == 0 {
		return len(st.PeerCertificates) == 0 && a.joiner(c)
	}
	return a.certified(c, st.VerifiedChains[0])
}

// certified decides on a certificate by the chain that leads from it to a root.
func (a *clientAuth) certified(c server.ClientAuthentication, chain []*x509.Certificate) bool {
	leaf := chain[0]
	ident, err := pki.FromCertificate(leaf)
	log := a.bus.refusals.With(zap.String("node", ident.NodeID), zap.Stringer("addr", c.RemoteAddress()))
	switch {
	case err != nil:
		log.Warn("refused a connection", zap.Error(err))
		return false
	case ident.ClusterID != a.bus.cfg.TLS.Identity().ClusterID:
		log.Warn("refused a connection: another cluster's certificate", zap.String("cluster", ident.ClusterID))
		return false
	case ident.Role != pki.User && a.bus.revoked(ident.NodeID):
		log.Warn("refused a connection: the node was removed from the cluster")
		return false
	}
	account, role := accountName, Role("")
	switch {
	case ident.Role == pki.Manager:
		var ok bool
		if account, role, ok = managerRole(c.GetOpts().Username); !ok {
			log.Warn("refused a connection: no such service", zap.String("service", c.GetOpts().Username))
			return false
		}
	case ident.Role == pki.Worker:
		role = RoleWorker
	case ident.Role == pki.Witness:
		role = RoleWitness
	case ident.Role == pki.User && !subject.IsPerson(ident.NodeID):
		log.Warn("refused a connection: not the name of a user")
		return false
	case ident.Role == pki.User && ident.UserRole == pki.Admin:
		role = RoleAdmin
	case ident.Role == pki.User && ident.UserRole == pki.Operator:
		role = RoleOperator
	case ident.Role == pki.User && ident.UserRole == pki.Viewer:
		role = RoleViewer
	default:
		log.Warn("refused a connection: unknown role", zap.String("role", string(ident.Role)))
		return false
	}
	if err := a.bus.guests.admit(c.GetID(), ident.NodeID, role, c.RemoteAddress()); err != nil {
		log.Warn("refused a connection: what came before it", zap.Error(err))
		return false
	}
	if len(chain) > 1 {
		// Noted before the roots are looked at: who comes while one is dropped is found among the connections.
		if a.bus.guests.signed(c.GetID(), keyOf(chain[1])); !a.bus.trusts(chain[len(chain)-1]) {
			log.Warn("refused a connection: its certificate is of a root that was dropped")
			return false
		}
	}
	if ident.Role == pki.User {
		serial := pki.Serial(leaf)
		// Noted before the list is asked: who comes on it meanwhile is found among the connections.
		if a.bus.guests.holds(c.GetID(), serial); a.bus.revokedUser(serial) {
			log.Warn("refused a connection: the user's certificate was revoked", zap.String("serial", serial))
			return false
		}
	}
	return a.register(c, account, &server.User{
		Username: ident.NodeID, Permissions: Permissions(role, ident.NodeID, from(c.RemoteAddress())), ConnectionDeadline: leaf.NotAfter,
	})
}

// managerRole maps the user name of a connection with a manager's certificate. A service in a process of its own names
// itself and gets what it would have in process: a slip of one service cannot write another's keys. It is no wall against
// who holds the certificate; that one may ask for everything.
func managerRole(user string) (account string, role Role, ok bool) {
	role = Role(user)
	if isService(role) || role == RoleAgent || role == RoleManager {
		return accountName, role, true
	}
	switch user {
	case "":
		return accountName, RoleManager, true
	case systemUser:
		return systemAccount, RoleManager, true
	}
	return "", "", false
}

// joiner admits a connection without a certificate to the join endpoint and to an inbox of its own, named by its user
// name (join-<random id>).
func (a *clientAuth) joiner(c server.ClientAuthentication) bool {
	name := c.GetOpts().Username
	if nonce, ok := strings.CutPrefix(name, "join-"); !ok || !id.Valid(nonce) {
		return false
	}
	if err := a.bus.guests.admit(c.GetID(), name, RoleJoiner, c.RemoteAddress()); err != nil {
		a.bus.refusals.Warn("refused a join", zap.Stringer("addr", c.RemoteAddress()), zap.Error(err))
		return false
	}
	return a.register(c, joinAccount(a.srv.Name()), &server.User{
		Username: name, Permissions: Permissions(RoleJoiner, name, subject.Local), ConnectionDeadline: time.Now().Add(joinDeadline),
	})
}

// inProcess maps the manager's own connections. Those made by InProcess know the password; any other pipe is the relay
// of local root, whatever name it gives.
func (a *clientAuth) inProcess(c server.ClientAuthentication) bool {
	o := c.GetOpts()
	name := Role(o.Username)
	if subtle.ConstantTimeCompare([]byte(o.Password), []byte(a.bus.secret)) != 1 {
		return a.register(c, accountName, &server.User{Username: subject.LocalRoot, Permissions: Permissions(RoleLocal, subject.LocalRoot, subject.Local)})
	}
	switch name {
	case systemUser:
		return a.register(c, systemAccount, &server.User{Username: systemUser})
	case doorUser:
		return a.register(c, joinAccount(a.srv.Name()), &server.User{Username: doorUser})
	}
	me := inboxName(name, a.bus.cfg.NodeID)
	return a.register(c, accountName, &server.User{Username: me, Permissions: Permissions(name, me, subject.Local)})
}

func (a *clientAuth) register(c server.ClientAuthentication, account string, u *server.User) bool {
	acc, err := a.srv.LookupAccount(account)
	if err != nil {
		a.bus.log.Error("refused a connection: no such account", zap.String("account", account), zap.Error(err))
		return false
	}
	u.Account = acc
	c.RegisterUser(u)
	return true
}

// from is the address of a connection as a token of subjects. The broker tells the client the same address.
func from(a net.Addr) string {
	if t, ok := a.(*net.TCPAddr); ok {
		return subject.From(t.AddrPort().Addr())
	}
	return subject.Local
}

// inboxName is the identity of an in-process connection. The agent's is the node's own.
func inboxName(name Role, nodeID string) string {
	if name == RoleAgent {
		return nodeID
	}
	return string(name) + "-" + nodeID
}

// noClients is the witness's: nobody has business there.
type noClients struct{}

func (noClients) Check(server.ClientAuthentication) bool { return false }

// routeAuth admits managers of this cluster to the route port. The certificate chain was verified by TLS; without this
// check a worker's certificate would do.
type routeAuth struct{ bus *Bus }

func (a routeAuth) Check(c server.ClientAuthentication) bool {
	st := c.GetTLSConnectionState()
	if c.Kind() != server.ROUTER || st == nil || len(st.VerifiedChains) == 0 {
		return false
	}
	ident, err := pki.FromCertificate(st.VerifiedChains[0][0])
	ok := err == nil && (ident.Role == pki.Manager || ident.Role == pki.Witness) && ident.ClusterID == a.bus.cfg.TLS.Identity().ClusterID && !a.bus.shut(ident.NodeID)
	if ok && ident.NodeID != a.bus.cfg.NodeID && (a.bus.cfg.Alone || a.bus.out(ident.NodeID)) {
		a.bus.refusals.Warn("refused a route: that manager is not in the group any more", zap.String("node", ident.NodeID), zap.Stringer("addr", c.RemoteAddress()))
		return false
	}
	if ok && a.bus.isDouble(ident.NodeID, c) {
		return false
	}
	if !ok {
		a.bus.refusals.Warn("refused a route: not a manager of this cluster",
			zap.String("node", ident.NodeID), zap.String("role", string(ident.Role)), zap.Stringer("addr", c.RemoteAddress()), zap.Error(err))
	}
	return ok
}
