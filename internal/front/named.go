package front

import (
	"fmt"
	"strconv"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/husk-cri/husk/bundlegen"
	"github.com/husk-cri/husk/manifestonly"
	"github.com/husk-cri/husk/pkg/errdefs"
	"github.com/husk-cri/husk/pkg/imageref"
)

// mayRefuseUser reports whether a pull of this handler depends on the user of the image. It
// does not without a pod, since nobody would run then, nor when the pod sets a user: all its
// containers have it, or one of their own.
func mayRefuseUser(h Handler, config *cri.PodSandboxConfig) bool {
	return h.RefusesNamedPulls && config.GetMetadata().GetName() != "" &&
		config.GetLinux().GetSecurityContext().GetRunAsUser() == nil
}

// refuseUser refuses the pull of an image whose user no container of the pod could be given.
func refuseUser(h Handler, req *cri.PullImageRequest, img manifestonly.Image) error {
	config := req.GetSandboxConfig()
	if !mayRefuseUser(h, config) {
		return nil
	}
	op := "pull " + img.Pulled.Reference.String()
	user, err := bundlegen.EffectiveUser(img.Parsed.Config, bundlegen.Request{})
	if err != nil {
		return errdefs.New(errdefs.KindOf(err), op, err)
	}
	if config.GetLinux().GetSecurityContext().GetRunAsGroup() != nil {
		user.Group = new(uint32) // some number: it replaces the name, and what it is decides the container
	}
	if !user.NeedsLookup() {
		return nil
	}
	return errdefs.Newf(errdefs.UserUnresolvable, op,
		"%s and runtime handler %s cannot look names up: set runAsUser (and runAsGroup) in the pod's securityContext; "+
			"for pods in which only the containers set it, the node needs named_users = \"refuse-at-create\"", isName(user, "image"), h.Name)
}

// refuseContainerUser refuses a container whose user the handler would have to look up.
func refuseContainerUser(h Handler, rec imageref.Record, pulled imageref.PulledReference, wanted bundlegen.Request) error {
	user, err := bundlegen.EffectiveUser(rec.Image.Config, wanted)
	if err != nil || h.ResolvesNames || !user.NeedsLookup() {
		return nil //nolint:nilerr // bundlegen.Rewrite says it, with all that it checks
	}
	whose := "request"
	if user.Spec == rec.Image.Config.User {
		whose = "image"
	}
	return errdefs.Newf(errdefs.UserUnresolvable, "create container from "+pulled.Reference.String(),
		"%s and runtime handler %s cannot look names up: set runAsUser (and runAsGroup) in the container's or the pod's securityContext",
		isName(user, whose), h.Name)
}

// isName says which part of a user is a name, of whom.
func isName(user bundlegen.User, whose string) string {
	what := "user"
	part, group, _ := strings.Cut(user.Spec, ":")
	if _, err := strconv.ParseUint(part, 10, 32); part == "" || err == nil {
		what, part = "group", group
	}
	return fmt.Sprintf("%s %q of the %s is a name", what, part, whose)
}
