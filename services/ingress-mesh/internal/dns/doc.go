// Package dns answers names for tasks: 127.0.0.11, port 53, inside each task's network namespace, over UDP and TCP, and
// the table of names behind it.
//
// It owns the sockets in the namespaces it is given, and nothing else. It refuses to tell what is not on the task's own
// networks, and to send the cluster's names to others' name servers (see internal). Everything else is forwarded, from
// the host's own namespace, to the name servers the task was given or else the host's: those may listen on the host's
// loopback, and the task's way out leads through the host anyway.
//
// Answers carry a time to live of a second. Swarm says ten minutes, and a client that believes it goes on with tasks
// that are gone; none at all would make caches useless that resolve the same name for every request. A name that exists
// and has no address of the kind asked for is answered without records, never with "no such name": resolvers that ask
// for both kinds take that as the answer to both.
//
// Failure story: names are answered from memory, so they need neither managers nor the network. While the process is
// down nothing answers and clients ask again; sockets are opened anew with the same address at once when it is back,
// whatever connections the old ones left behind. A name server that fails or is silent is given up after Config.Timeout
// for the next one, of three; when none answers, the client is told so (SERVFAIL) rather than left waiting. A task that
// asks too much, or whose name servers hang, is refused beyond its share of what is under way, and others are not.
package dns
