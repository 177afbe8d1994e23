// Command mkimage builds images for Husk's tests; see internal/testkit/images.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/urfave/cli/v2"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := app().RunContext(ctx, os.Args)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		os.Exit(1)
	}
}

func app() *cli.App {
	return &cli.App{
		Name:  "mkimage",
		Usage: "build images for tests as OCI image layouts",
		Description: "Every build command prints a JSON summary: digests, layer sizes, count of encrypted layers.\n" +
			"Push the result with: skopeo copy --all --dest-tls-verify=false oci:DIR:TAG docker://HOST/REPO:TAG",
		// Values such as --cmd 'a,b' must not be split.
		DisableSliceFlagSeparator: true,
		Commands:                  []*cli.Command{buildCommand(), pauseCommand(), artifactCommand(), keygenCommand(), pushCommand()},
	}
}
