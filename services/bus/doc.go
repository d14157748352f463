// Package bus is the broker of a manager: a nats-server inside the process, reachable by nodes over mutual TLS 1.3,
// by the manager's own services through in-process pipes and by local root through a relay of such a pipe.
//
// It owns who may connect, who may say what on which subject (Permissions, one function), and the membership of the
// JetStream group: the server itself, its witness while there are fewer than three managers, and the operations that let
// managers come and go. It owns no data: streams belong to the services.
//
// It refuses: any peer whose certificate is not of the cluster's CA, is revoked or has expired; a worker's certificate
// on the route port; everything but a request to join from a connection without a certificate; the system account to all
// but managers; every TCP client on the witness.
//
// Failure story. kill -9: acknowledged writes are on disk (SyncAlways); existing streams take writes 0.1 s after the
// restart, the JetStream API within 0.7 s. A witness whose store is lost or damaged is rebuilt from the server, under the
// same name, while the manager is alone. The loss of the server's own meta directory is healed by the witness. A fatal
// error of the embedded server ends Run with that error, never the process.
package bus
