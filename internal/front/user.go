package front

import (
	"context"
	"strconv"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/bundlegen"
	"github.com/husk-cri/husk/pkg/imageref"
	"github.com/husk-cri/husk/status"
)

// identity is a user as kubelet's CRI calls can express it: a name, or a uid
// while name is empty. The zero value is root, which is also what kubelet takes
// an image without a user, or no image at all, to mean (helpers.go, getImageUser).
type identity struct {
	name string
	uid  int64
}

// nonRootNumber reports whether i is a uid that kubelet's runAsNonRoot accepts.
func (i identity) nonRootNumber() bool { return i.name == "" && i.uid != 0 }

func (i identity) String() string {
	if i.name != "" {
		return i.name
	}
	return strconv.FormatInt(i.uid, 10)
}

// identityOf makes an identity of what an image or a request says.
func identityOf(uid *int64, name string) identity {
	if uid != nil {
		return identity{uid: *uid}
	}
	return identity{name: name}
}

func value(v *cri.Int64Value) *int64 {
	if v == nil {
		return nil
	}
	return &v.Value
}

// request is the container config as bundlegen takes it, with the user decided
// (docs/adr/0003-presence-and-user.md).
func (s *Server) request(ctx context.Context, records []imageref.Record, rec imageref.Record, config *cri.ContainerConfig) (bundlegen.Request, error) {
	security := config.GetLinux().GetSecurityContext()
	req := bundlegen.Request{
		Command:            config.GetCommand(),
		Args:               config.GetArgs(),
		WorkingDir:         config.GetWorkingDir(),
		RunAsUser:          value(security.GetRunAsUser()),
		RunAsUsername:      security.GetRunAsUsername(),
		RunAsGroup:         value(security.GetRunAsGroup()),
		SupplementalGroups: security.GetSupplementalGroups(),
	}
	for _, env := range config.GetEnvs() {
		req.Env = append(req.Env, env.GetKey()+"="+string(env.GetValue()))
	}
	if signal := config.GetStopSignal(); signal != cri.Signal_SIGNAL_RUNTIME_DEFAULT {
		req.StopSignal = strings.TrimPrefix(signal.String(), "SIGNAL_")
	}
	if security.GetSupplementalGroupsPolicy() == cri.SupplementalGroupsPolicy_Strict {
		req.GroupsPolicy = bundlegen.Strict
	}
	if req.RunAsUser == nil && req.RunAsUsername == "" {
		return req, nil
	}
	implied, err := s.impliedUser(ctx, records, config.GetImage())
	if err != nil {
		return bundlegen.Request{}, err
	}
	asked := identityOf(req.RunAsUser, req.RunAsUsername)
	if req.RunAsUsername != "" {
		asked = identity{name: req.RunAsUsername}
	}
	if asked != implied {
		return req, nil // the pod's own choice
	}
	own := identityOf(status.User(rec.Image.Config))
	if asked.nonRootNumber() && !own.nonRootNumber() {
		// It may be an explicit runAsUser, or a pod with runAsNonRoot for which
		// kubelet took this uid as proof. Never give more than was asked for.
		s.Log.WarnContext(ctx, "the image CRI-O holds by this name has another user than the one that was pulled; "+
			"keeping the request's, which is not root", "image", bounded(config.GetImage().GetUserSpecifiedImage()),
			"request_user", bounded(asked.String()), "image_user", bounded(own.String()))
		return req, nil
	}
	setImageUser(&req, rec)
	return req, nil
}

// setImageUser makes the image's own user explicit, with the group that the image
// names and kubelet does not pass on.
func setImageUser(req *bundlegen.Request, rec imageref.Record) {
	req.RunAsUser, req.RunAsUsername = nil, rec.Image.Config.User
	if user, _, _ := strings.Cut(req.RunAsUsername, ":"); user == "" {
		req.RunAsUser = new(int64)
	}
}

// impliedUser is the user that kubelet has taken from its user query, unless the
// pod set one: an ImageStatus of the pod's reference without annotations or
// handler, answered as imageStatus answers it.
func (s *Server) impliedUser(ctx context.Context, records []imageref.Record, spec *cri.ImageSpec) (identity, error) {
	name := spec.GetUserSpecifiedImage()
	if name == "" {
		name = spec.GetImage()
	}
	image, err := s.ordinaryImage(ctx, name)
	if err != nil {
		return identity{}, err
	}
	if image != nil {
		return identityOf(value(image.GetUid()), image.GetUsername()), nil
	}
	q, err := s.query(ctx, name)
	if err != nil {
		return identity{}, err
	}
	if found := imageref.Resolve(records, q).Records; len(found) > 0 {
		return identityOf(status.User(found[0].Image.Config)), nil
	}
	return identity{}, nil
}
