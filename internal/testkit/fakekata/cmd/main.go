// Command containerd-shim-fakekata-v2 stands in for Kata's shim under a handler with
// runtime_type = "vm" and runtime_pull_image = true. See package fakekata. CRI-O wants the
// binary to have that name.
package main

import (
	"context"
	"os"

	"github.com/husk-cri/husk/internal/testkit/fakekata"
)

func main() {
	os.Exit(fakekata.Main(context.Background(), os.Args))
}
