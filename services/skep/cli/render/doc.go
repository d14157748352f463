// Package render turns API objects into what a person or a script reads: Docker's columns and placeholders, Go
// templates, JSON. It is pure: what time it is and which node is this one are given to it.
package render
