// Package compose turns compose files into what a stack asks for: a StackSpec, the values of its secrets and configs, the
// objects that must exist already, and notes about what is read otherwise than somebody may expect.
//
// It reads files and its options, nothing else: no cluster, no environment, no clock. The same input gives the same bytes.
// Nothing of a file is dropped without a line: the table in attributes.go says of every attribute of the compose
// specification whether it is done, done in another way, passed over with a note, or refused, and docs/compose.md shows it.
// Parsing, merging, extends and include are compose-go's; this package adds the bounds, the places in files, what Swarm
// makes of a stack, and the repair of what compose-go would read otherwise.
package compose
