package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/distribution/reference"
	"golang.org/x/sys/unix"
)

// pullRecords is what kubelet remembers with the gate KubeletEnsureSecretPulledImages
// (KEP-2535, pkg/kubelet/images/pullmanager/image_pull_manager.go) and its default
// policy, NeverVerifyPreloadedImages.
type pullRecords struct {
	// Intents counts the pulls under way, by the image as the pod names it.
	Intents map[string]int `json:"intents,omitempty"`
	// Pulled is what PullImage answered.
	Pulled map[string]*pulledRecord `json:"pulled,omitempty"`
}

// pulledRecord is an ImagePulledRecord: who may use an image, by repository.
type pulledRecord struct {
	Updated time.Time         `json:"updated"`
	Access  map[string]access `json:"access"`
}

// access is ImagePullCredentials.
type access struct {
	Everybody bool `json:"everybody,omitempty"` // nodePodsAccessible
	// Secrets are the hashes of credentials by the Secrets they came from.
	Secrets map[string]string `json:"secrets,omitempty"`
}

// coordinates stand for UID, namespace and name of the Secret.
func (s secret) coordinates() string { return s.Namespace + "/" + s.Name }

func (s secret) hash() string {
	sum := sha256.Sum256([]byte(s.Username + "\x00" + s.Password))
	return hex.EncodeToString(sum[:])
}

// repositoryOf is trimImageTagDigest.
func repositoryOf(image string) string {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return image
	}
	return reference.TrimNamed(named).Name()
}

// mustAttempt is MustAttemptImagePull.
func (r *pullRecords) mustAttempt(image, ref string, secrets []secret) bool {
	record := r.Pulled[ref]
	if record == nil && r.Intents[image] == 0 {
		return false // preloaded: kubelet has not pulled it
	}
	if record == nil {
		return true
	}
	allowed, known := record.Access[repositoryOf(image)]
	if !known {
		return true
	}
	return !allowed.Everybody && !slices.ContainsFunc(secrets, func(s secret) bool {
		_, sameSecret := allowed.Secrets[s.coordinates()]
		return sameSecret || slices.Contains(slices.Collect(maps.Values(allowed.Secrets)), s.hash())
	})
}

// intend is RecordPullIntent, settled the end of that pull.
func (r *pullRecords) intend(image string) {
	if r.Intents == nil {
		r.Intents = map[string]int{}
	}
	r.Intents[image]++
}

func (r *pullRecords) settled(image string) {
	if r.Intents[image]--; r.Intents[image] <= 0 {
		delete(r.Intents, image)
	}
}

// record is RecordImagePulled; without a secret the image is for all.
func (r *pullRecords) record(image, ref string, used *secret) {
	if r.Pulled == nil {
		r.Pulled = map[string]*pulledRecord{}
	}
	if r.Pulled[ref] == nil {
		r.Pulled[ref] = &pulledRecord{Access: map[string]access{}}
	}
	record, name := r.Pulled[ref], repositoryOf(image)
	allowed := record.Access[name]
	switch {
	case allowed.Everybody:
		return
	case used == nil:
		allowed = access{Everybody: true}
	default:
		if allowed.Secrets == nil {
			allowed.Secrets = map[string]string{}
		}
		allowed.Secrets[used.coordinates()] = used.hash()
	}
	record.Access[name], record.Updated = allowed, time.Now()
}

// prune is PruneUnknownRecords, which runs after a garbage collection.
func (r *pullRecords) prune(left []string, began time.Time) {
	maps.DeleteFunc(r.Pulled, func(ref string, record *pulledRecord) bool {
		return record.Updated.Before(began) && !slices.Contains(left, ref)
	})
}

// recordFile holds the records between two runs of this command, and for those that
// run at the same time.
type recordFile struct{ path string }

// update reads the records, changes them and writes them back, alone.
func (f recordFile) update(change func(*pullRecords)) (err error) {
	lock, err := os.OpenFile(f.path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("pull records: %w", err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock pull records: %w", err)
	}
	var r pullRecords
	data, err := os.ReadFile(f.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("pull records: %w", err)
	}
	if err == nil {
		if err := json.Unmarshal(data, &r); err != nil {
			return fmt.Errorf("parse pull records: %w", err)
		}
	}
	change(&r)
	if data, err = json.Marshal(r); err != nil {
		return fmt.Errorf("pull records: %w", err)
	}
	return os.WriteFile(f.path, data, 0o600)
}
