// Package cdh holds the messages of the Confidential Data Hub's and the attestation
// agent's ttrpc interfaces, as far as Husk speaks them.
package cdh

// The names by which ttrpc requests call the methods.
const (
	// ImagePullService and PullImage: a pull inside the guest.
	ImagePullService = "api.ImagePullService"
	PullImage        = "PullImage"
	// GetResourceService and GetResource: a resource of the key broker.
	GetResourceService = "api.GetResourceService"
	GetResource        = "GetResource"
	// AttestationAgentService and ExtendRuntimeMeasurement: an event of the guest.
	AttestationAgentService  = "attestation_agent.AttestationAgentService"
	ExtendRuntimeMeasurement = "ExtendRuntimeMeasurement"
)
