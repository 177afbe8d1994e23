// Command kata checks the record of a fakekata shim (internal/testkit/fakekata): every
// volume that CRI-O sent is decoded by pkg/katavolume, is what GuestPull makes of the spec's
// own annotations, and is encoded again to the same bytes. It prints how many there were.
//
//	kata RECORD
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/husk-cri/husk/internal/testkit/fakekata"
	"github.com/husk-cri/husk/pkg/katavolume"
	"github.com/husk-cri/husk/test/internal/rig"
)

// timeout bounds the reading of one file.
const timeout = time.Minute

func main() {
	rig.Main("kata", timeout, func(_ context.Context, args []string) error { return run(args, os.Stdout) })
}

func run(args []string, out io.Writer) error {
	if len(args) != 1 {
		return errors.New("say which RECORD")
	}
	data, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	volumes := 0
	for lines := json.NewDecoder(bytes.NewReader(data)); ; {
		var e fakekata.Event
		err := lines.Decode(&e)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if e.Event != "create" {
			continue
		}
		if err := check(e); err != nil {
			return fmt.Errorf("container %s: %w", e.ID, err)
		}
		volumes++
	}
	_, err = fmt.Fprintln(out, volumes)
	return err
}

// check compares what came for one container with what this project would send.
func check(e fakekata.Event) error {
	if len(e.Mounts) != 1 || e.Mounts[0].Type != katavolume.MountType || e.Mounts[0].Source != "" || len(e.Mounts[0].Options) != 1 {
		return fmt.Errorf("the root file system is not CRI-O's: %+v", e.Mounts)
	}
	sent := e.Mounts[0].Options[0]
	v, found, err := katavolume.FromOptions(e.Mounts[0].Options)
	if err != nil || !found {
		return fmt.Errorf("decode (found %t): %w", found, err)
	}
	again, err := v.Option()
	if err != nil {
		return err
	}
	if again != sent {
		return fmt.Errorf("sent    %s\nencoded %s", sent, again)
	}
	made, err := katavolume.GuestPull(v.Source, e.Spec.Annotations).Option()
	if err != nil {
		return err
	}
	if made != sent {
		return fmt.Errorf("sent %s\nmade %s", sent, made)
	}
	return nil
}
