package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// countLayers counts the layers in CRI-O's storage: the entries of its own layer
// databases on disk.
func countLayers(root string) (int, error) {
	total := 0
	for _, name := range []string{"layers.json", "volatile-layers.json"} {
		data, err := os.ReadFile(filepath.Join(root, "overlay-layers", name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		var layers []json.RawMessage
		if err := json.Unmarshal(data, &layers); err != nil {
			return 0, fmt.Errorf("parse %s: %w", name, err)
		}
		total += len(layers)
	}
	return total, nil
}

// recordBytes returns the bytes on disk of the image whose manifest has the
// digest, from CRI-O's own image database; 0 when there is none.
func recordBytes(root, manifest string) (int64, error) {
	dir := filepath.Join(root, "overlay-images")
	data, err := os.ReadFile(filepath.Join(dir, "images.json"))
	if err != nil {
		return 0, err
	}
	var images []struct {
		ID     string `json:"id"`
		Digest string `json:"digest"`
		Layer  string `json:"layer"`
	}
	if err := json.Unmarshal(data, &images); err != nil {
		return 0, fmt.Errorf("parse images.json: %w", err)
	}
	var total int64
	for _, img := range images {
		if img.Digest != manifest {
			continue
		}
		if img.Layer != "" {
			return 0, fmt.Errorf("image %s has the layer %s", img.ID, img.Layer)
		}
		err := filepath.WalkDir(filepath.Join(dir, img.ID), func(_ string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			info, err := d.Info()
			total += info.Size()
			return err
		})
		if err != nil {
			return 0, err
		}
	}
	return total, nil
}

// filesWith counts the regular files below dir, outside skip, that hold the text.
// It follows mounts: what any mount in this namespace shows, the host can read.
func filesWith(dir string, skip []string, text string) (int, error) {
	found := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone since it was listed, or no such directory at all
		}
		if err != nil {
			return err
		}
		if d.IsDir() && slices.Contains(skip, path) {
			return fs.SkipDir
		}
		if !d.Type().IsRegular() {
			return nil
		}
		if isNamespace(path) {
			return nil // a mounted namespace has no content, and cannot be read
		}
		has, err := contains(path, []byte(text))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if has {
			found++
		}
		return err
	})
	return found, err
}

func isNamespace(path string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(path, &fs) == nil && fs.Type == unix.NSFS_MAGIC
}

// contains searches a file of any size with bounded memory.
func contains(path string, text []byte) (found bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buf := make([]byte, 1<<20)
	kept := 0
	for {
		n, err := f.Read(buf[kept:])
		if bytes.Contains(buf[:kept+n], text) {
			return true, nil
		}
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		// The text may lie across two reads.
		tail := min(kept+n, len(text)-1)
		copy(buf, buf[kept+n-tail:kept+n])
		kept = tail
	}
}
