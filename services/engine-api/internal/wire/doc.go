// Package wire is the Docker Engine API as HTTP: which versions of it are spoken, how a path becomes a route, the form of errors
// and filters, and how much one caller may ask for at once. It knows no service, node or task, and no connection to a cluster.
//
// It refuses what no client of Docker sends: names that climb paths or hold control characters, bodies above their limit, headers
// that dribble in, more open requests than there is room for. Every refusal is Docker's: {"message": "…"} with its status.
//
// Failure story: a handler that panics answers 500 and is in the log with its stack; the server goes on. A client that is gone ends
// its request's context.
package wire
