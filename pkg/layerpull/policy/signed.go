package policy

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/containers/image/v5/signature"
	"github.com/containers/image/v5/types"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// RequiresSignature says whether p accepts an image under this reference only with a
// signature. If it does, and p has accepted the image, then a signature was verified.
//
// containers/image does not tell by what an image was accepted, nor which of the
// requirements it took. So it is asked again, with a policy of the same scopes that
// refuses wherever p wants a signature: the choice of the scope is its own, and no
// image is looked at. Errors are of kind Internal.
func RequiresSignature(ctx context.Context, p *signature.Policy, ref types.ImageReference) (bool, error) {
	const op = "read signature policy"
	probe, err := probeOf(p)
	if err != nil {
		return false, errdefs.New(errdefs.Internal, op, err)
	}
	pc, err := signature.NewPolicyContext(probe)
	if err != nil {
		return false, errdefs.New(errdefs.Internal, op, err)
	}
	allowed, err := pc.IsRunningImageAllowed(ctx, nameOnly{ref})
	if e := pc.Destroy(); e != nil {
		return false, errdefs.New(errdefs.Internal, op, e)
	}
	var refused signature.PolicyRequirementError
	if allowed || errors.As(err, &refused) {
		return !allowed, nil
	}
	return false, errdefs.New(errdefs.Internal, op, err)
}

// probeOf returns p with "reject" in each place where a signature is needed, and
// "accept anything" in all others.
func probeOf(p *signature.Policy) (*signature.Policy, error) {
	var err error
	mark := func(requirements signature.PolicyRequirements) signature.PolicyRequirements {
		for _, r := range requirements {
			verifies, e := verifiesSignature(r)
			if e != nil {
				err = e
			}
			if verifies {
				return signature.PolicyRequirements{signature.NewPRReject()}
			}
		}
		return signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()}
	}
	probe := &signature.Policy{Default: mark(p.Default), Transports: map[string]signature.PolicyTransportScopes{}}
	for transport, scopes := range p.Transports {
		probe.Transports[transport] = signature.PolicyTransportScopes{}
		for scope, requirements := range scopes {
			probe.Transports[transport][scope] = mark(requirements)
		}
	}
	return probe, err
}

// verifiesSignature says whether a requirement is met by a signature alone. All
// requirements of a scope must be met, so one is enough. What a requirement is shows
// only in its JSON. A type that is not known here counts as none.
func verifiesSignature(r signature.PolicyRequirement) (bool, error) {
	data, err := json.Marshal(r)
	if err != nil {
		return false, err
	}
	var common struct {
		Type string `json:"type"`
	}
	if err := json.Unmarshal(data, &common); err != nil {
		return false, err
	}
	switch common.Type {
	case "signedBy", "sigstoreSigned":
		return true, nil
	}
	return false, nil
}

// nameOnly is an image of which only the name is known.
type nameOnly struct{ ref types.ImageReference }

var _ types.UnparsedImage = nameOnly{}

var errNameOnly = errors.New("only the image's name is known")

// Reference implements [types.UnparsedImage].
func (n nameOnly) Reference() types.ImageReference { return n.ref }

// Manifest implements [types.UnparsedImage].
func (nameOnly) Manifest(context.Context) ([]byte, string, error) { return nil, "", errNameOnly }

// Signatures implements [types.UnparsedImage].
func (nameOnly) Signatures(context.Context) ([][]byte, error) { return nil, errNameOnly }
