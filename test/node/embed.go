// Package testnode carries what the node under test is built from: the module files that pin stock CRI-O,
// and the source of the pause binary. They are embedded so that a testnode binary builds the same node
// wherever it is run from.
package testnode

import "embed"

// Files holds go.mod, go.sum and pause/pause.c.
//
//go:embed go.mod go.sum pause/pause.c
var Files embed.FS
