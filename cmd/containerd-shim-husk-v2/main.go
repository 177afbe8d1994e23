// Command containerd-shim-husk-v2 is the shim that CRI-O starts for pods whose
// layers are pulled inside their sandbox. See package shim.
package main

import (
	"context"
	"os"

	"github.com/husk-cri/husk/internal/sandbox/layers"
	"github.com/husk-cri/husk/internal/shim"
)

// version is set by the linker.
var version = "dev"

func main() {
	os.Exit(shim.Main(context.Background(), os.Args, version, layers.Layers{}))
}
