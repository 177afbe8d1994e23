package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/docker/go-units"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/internal/testkit/images"
)

// accounts returns root's line, then more, each line ended.
func accounts(root, more string) string {
	if more == "" {
		return root + "\n"
	}
	return root + "\n" + strings.TrimSuffix(more, "\n") + "\n"
}

func set(list []string) map[string]struct{} {
	if len(list) == 0 {
		return nil
	}
	m := make(map[string]struct{}, len(list))
	for _, s := range list {
		m[s] = struct{}{}
	}
	return m
}

func parseLabels(list []string) (map[string]string, error) {
	if len(list) == 0 {
		return nil, nil
	}
	m := make(map[string]string, len(list))
	for _, s := range list {
		k, v, ok := strings.Cut(s, "=")
		if !ok {
			return nil, fmt.Errorf("label %q: want K=V", s)
		}
		m[k] = v
	}
	return m, nil
}

func parsePlatforms(s string) ([]imgspec.Platform, error) {
	if s == "" {
		return nil, nil
	}
	var platforms []imgspec.Platform
	for _, p := range strings.Split(s, ",") {
		parts := strings.Split(p, "/")
		if len(parts) < 2 || len(parts) > 3 {
			return nil, fmt.Errorf("platform %q: want OS/ARCH or OS/ARCH/VARIANT", p)
		}
		platform := imgspec.Platform{OS: parts[0], Architecture: parts[1]}
		if len(parts) == 3 {
			platform.Variant = parts[2]
		}
		platforms = append(platforms, platform)
	}
	return platforms, nil
}

func parseLayers(files, random []string) ([]images.Layer, error) {
	var layers []images.Layer
	for _, s := range files {
		i := strings.IndexAny(s, "=@")
		if i <= 0 || s[0] != '/' {
			return nil, fmt.Errorf("layer %q: want /PATH=CONTENT or /PATH@FILE", s)
		}
		content := []byte(s[i+1:])
		if s[i] == '@' {
			var err error
			if content, err = os.ReadFile(s[i+1:]); err != nil {
				return nil, fmt.Errorf("layer: %w", err)
			}
		}
		layers = append(layers, images.Layer{Files: []images.File{{Path: s[:i], Content: content}}})
	}
	for _, s := range random {
		size, err := units.RAMInBytes(s)
		if err != nil {
			return nil, fmt.Errorf("random layer: %w", err)
		}
		layers = append(layers, images.Layer{Random: size})
	}
	return layers, nil
}

func parseEncryption(keys []string, layers []int) (*images.Encryption, error) {
	if len(keys) == 0 {
		if len(layers) > 0 {
			return nil, errors.New("--encrypt-layer needs --encrypt-key")
		}
		return nil, nil
	}
	e := &images.Encryption{Layers: layers}
	for _, path := range keys {
		pem, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("encryption key: %w", err)
		}
		e.PublicKeys = append(e.PublicKeys, pem)
	}
	return e, nil
}
