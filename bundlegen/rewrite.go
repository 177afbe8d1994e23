package bundlegen

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/husk-cri/husk/pkg/annotations"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// PlaceholderID stands in CRI-O's spec for a user or group that only the image's
// files can resolve; the shim replaces it. It is "nobody" and not root, so that a
// container whose shim fails to replace it holds no privilege (docs/adr/0004-users.md).
const PlaceholderID = 65534

// RewriteOptions are the properties of a runtime handler that matter to [Rewrite].
type RewriteOptions struct {
	// ResolvesNames says that the runtime resolves user and group names against the
	// image's files, as Husk's shim does. Zero: it does not (Kata), and a container
	// whose user needs it is refused.
	ResolvesNames bool
	// KeepTag tells the runtime the tag that was pulled instead of the digest, for
	// guest policies that match tags. Zero: the reference is pinned to its digest.
	KeepTag bool
}

// Changes is what the front changes in a CRI CreateContainerRequest so that stock
// CRI-O makes a container from a layer-less record. Everything else in the request,
// the supplemental groups and their policy included, stays as it is.
//
// When the request has no security context, the front must create one with an empty
// (not nil) seccomp and apparmor profile: CRI-O takes a nil context for the runtime's
// default profiles and user 0, and a context without a seccomp profile for unconfined.
type Changes struct {
	// Image becomes image.image.
	Image imageref.StorageID
	// UserSpecifiedImage becomes image.user_specified_image: CRI-O checks signatures
	// under this name, and refuses a bare ID there.
	UserSpecifiedImage imageref.Reference
	// RunAsUser becomes run_as_user; run_as_username becomes empty.
	RunAsUser int64
	// RunAsGroup becomes run_as_group; nil leaves it unset.
	RunAsGroup *int64
	// Annotations are set on the container, over any of the same key. Every key is
	// always there, so that no annotation of the pod shows through.
	Annotations map[string]string
}

// Rewrite computes the changes for a container of rec, pulled by the given reference.
// Its errors are those of [EffectiveUser] and [Effective], and UserUnresolvable when
// the handler cannot resolve the names the user is given by.
func Rewrite(rec imageref.Record, pulled imageref.PulledReference, req Request, opts RewriteOptions) (Changes, error) {
	changes, _, err := rewrite(rec, pulled, req, opts)
	if err == nil {
		err = checkEnv(rec, req)
	}
	if err != nil {
		return Changes{}, fmt.Errorf("create container from %s: %w", pulled.Reference, err)
	}
	return changes, nil
}

// rewrite is Rewrite for any that takes specs, not just CRI-O. It also returns the process that the container will have.
func rewrite(rec imageref.Record, pulled imageref.PulledReference, req Request, opts RewriteOptions) (c Changes, p Process, err error) {
	user, err := EffectiveUser(rec.Image.Config, req)
	if err != nil {
		return Changes{}, Process{}, err
	}
	if user.NeedsLookup() && !opts.ResolvesNames {
		return Changes{}, Process{}, errdefs.Newf(errdefs.UserUnresolvable, "decide container user",
			"user %q is not numeric, and this runtime handler cannot look names up in the image: "+
				"set runAsUser and runAsGroup in the container's securityContext", user.Spec)
	}
	if p, err = Effective(rec.Image, req); err != nil {
		return Changes{}, Process{}, err
	}
	uid, gid, err := placeholders(user, opts.ResolvesNames)
	if err != nil {
		return Changes{}, Process{}, err
	}
	notes, err := containerAnnotations(rec, pulled, user, p.Volumes)
	if err != nil {
		return Changes{}, Process{}, err
	}
	if opts.KeepTag {
		notes[annotations.CRIOImageName] = pulled.Reference.String()
	}
	return Changes{
		Image:              rec.StorageID,
		UserSpecifiedImage: pulled.Reference,
		RunAsUser:          uid,
		RunAsGroup:         gid,
		Annotations:        notes,
	}, p, nil
}

// placeholders returns the ids that CRI-O is given. What is known goes in as it is;
// what only the image knows goes in as PlaceholderID where the runtime will replace it.
// A numeric user's group is the passwd entry's: for root that is 0 in CRI-O's spec
// already, and a runtime that looks nothing up gets 0, as for a user without an entry.
func placeholders(u User, resolves bool) (uid int64, gid *int64, err error) {
	spec, err := parseSpec(u.Spec)
	if err != nil {
		return 0, nil, err
	}
	uid = int64(spec.user.id)
	if spec.userName() != "" {
		uid = PlaceholderID
	}
	group := func(id int64) *int64 { return &id }
	switch {
	case u.Group != nil:
		gid = group(int64(*u.Group))
	case spec.group.numeric:
		gid = group(int64(spec.group.id))
	case spec.groupName() != "" || (resolves && uid != 0):
		gid = group(PlaceholderID)
	}
	return uid, gid, nil
}

// checkEnv refuses the one image that makes CRI-O 1.34 panic: a variable without "="
// while the request has no variables at all (createSandboxContainer indexes the value).
func checkEnv(rec imageref.Record, req Request) error {
	if len(req.Env) > 0 {
		return nil
	}
	for i, entry := range rec.Image.Config.Env {
		if !strings.Contains(entry, "=") {
			return errdefs.Newf(errdefs.InvalidArgument, "check image config", "entry %d of env has no \"=\"", i)
		}
	}
	return nil
}

func containerAnnotations(rec imageref.Record, pulled imageref.PulledReference, u User, vols []string) (map[string]string, error) {
	user, err := EncodeUser(u)
	if err != nil {
		return nil, err
	}
	if vols == nil {
		vols = []string{}
	}
	volumes, err := json.Marshal(vols)
	if err != nil {
		return nil, errdefs.New(errdefs.Internal, "encode image volumes", err)
	}
	pinned := pulled.Pinned().String()
	return map[string]string{
		annotations.CRIOImageName: pinned,
		annotations.RecordID:      rec.StorageID.String(),
		annotations.ImageID:       rec.ImageID().String(),
		annotations.ImageRef:      pinned,
		annotations.UserImage:     pulled.Reference.String(),
		annotations.User:          user,
		annotations.ImageVolumes:  string(volumes),
	}, nil
}
