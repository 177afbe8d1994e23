package manifestonly

import (
	"math"
	"slices"

	"github.com/containerd/platforms"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
)

// zstdAnnotation marks an index entry whose layers are compressed with zstd; of
// two entries for one platform, containers/image (and so CRI-O) takes that one.
const zstdAnnotation = "io.github.containers.compression.zstd"

// variants lists the variants of an architecture, the most capable first.
func variants(arch string) []string {
	switch arch {
	case "arm":
		return []string{"v8", "v7", "v6", "v5"}
	case "arm64":
		return []string{"v8"}
	}
	return nil
}

// wanted returns the platforms that serve p, the best first, by the rules of
// containers/image: both must pick the same instance of an index, or a pod would
// change its image with its handler. A zero p is the node's own platform.
func wanted(p imgspec.Platform) []imgspec.Platform {
	if p.Architecture == "" {
		host := platforms.DefaultSpec()
		p.Architecture = host.Architecture
		if p.Variant == "" {
			p.Variant = host.Variant
		}
		if p.OS == "" {
			p.OS = host.OS
		}
	}
	if p.OS == "" {
		p.OS = platforms.DefaultSpec().OS
	}
	order := variants(p.Architecture)
	names := append([]string{""}, order...)
	if p.Variant != "" {
		names = []string{p.Variant, ""}
		if i := slices.Index(order, p.Variant); i >= 0 {
			names = append(slices.Clone(order[i:]), "")
		}
	}
	result := make([]imgspec.Platform, 0, len(names))
	for _, v := range names {
		result = append(result, imgspec.Platform{OS: p.OS, Architecture: p.Architecture, Variant: v})
	}
	return result
}

// choose returns the entry of an index that serves platform p. An entry without
// a platform serves any, as the last resort.
func choose(entries []imgspec.Descriptor, p imgspec.Platform) (imgspec.Descriptor, bool) {
	order := wanted(p)
	best, bestRank, bestZstd := -1, math.MaxInt, false
	for i, d := range entries {
		rank := len(order)
		if d.Platform != nil {
			rank = slices.IndexFunc(order, func(w imgspec.Platform) bool {
				return d.Platform.OS == w.OS && d.Platform.Architecture == w.Architecture && d.Platform.Variant == w.Variant
			})
			if rank < 0 {
				continue
			}
		}
		zstd := d.Annotations[zstdAnnotation] == "true"
		if rank < bestRank || rank == bestRank && zstd && !bestZstd {
			best, bestRank, bestZstd = i, rank, zstd
		}
	}
	if best < 0 {
		return imgspec.Descriptor{}, false
	}
	return entries[best], true
}
