#!/usr/bin/env bats
# What fails says so: the right CRI error, naming the reference, no credential anywhere, nothing left in the store.

load helpers

PASSWORD=hunter2-is-secret
WRONG=wr0ng-is-secret-too

setup_file() {
	node_up --auth "alice:$PASSWORD"
	cat >"$NODE_DIR/conf/crio.conf.d/60-lazy.conf" <<-TOML
		[crio.runtime.runtimes.lazy]
		runtime_type = "vm"
		runtime_path = "$HUSK_BIN_DIR/containerd-shim-husk-v2"
		runtime_root = "$NODE_DIR/crio/lazy"
		runtime_pull_image = true
		runtime_config_path = "$HUSK_TMP/shim.toml"
	TOML
	crio_restart
	husk_start '[handlers.lazy]' 'eager_pull = false'
	run_pod guest husk
	echo '{"default":[{"type":"reject"}]}' >"$NODE_DIR/conf/policies/locked.json"
}

teardown_file() {
	nodes_down
}

setup() {
	IMAGES_BEFORE=$(stock images -q | sort)
}

teardown() {
	show_logs_on_failure
	[[ -z ${LIAR_PID:-} ]] || kill "$LIAR_PID"
}

# refused CODE REFERENCE [FLAG OF crictl pull...]: the pull for the husk pod fails with that gRPC code, or with the
# sentinel that kubelet looks for where it looks for it, and names the reference; the store is as it was.
refused() {
	local code=$1 ref=$2
	shift 2
	run ! pull_image "$ref" guest "$@"
	case $code in
	RegistryUnavailable | SignatureValidationFailed) assert_contains "$output" "pulling image: $code: " ;; # nothing in front
	*) assert_contains "$output" "pulling image: rpc error: code = $code desc = " ;;
	esac
	assert_contains "$output" "$ref"
	refute_contains "$output" "$PASSWORD"
	refute_contains "$output" "$WRONG"
	assert_eq "$(stock images -q | sort)" "$IMAGES_BEFORE" "images in the store"
	"$HUSK_BIN_DIR/husk" --config "$HUSK_TMP/husk.toml" images --format json | jq -e --arg r "$ref" 'all(.[].references[].reference; . != $r)'
}

# blob DIGEST: the file in which the registry keeps it.
blob() {
	local hex=${1#sha256:}
	echo "$NODE_DIR/registry/docker/registry/v2/blobs/sha256/${hex:0:2}/$hex/data"
}

@test "missing image" {
	refused NotFound "$REGISTRY/none:1"
	refused NotFound "$REGISTRY/busybox:no-such-tag"
	refused NotFound "$REGISTRY/busybox@sha256:$(printf '0%.0s' {1..64})"
}

@test "wrong credentials, none, and right ones" {
	skopeo copy -q --insecure-policy --src-tls-verify=false --dest-tls-verify=false --dest-creds "alice:$PASSWORD" \
		"docker://$REGISTRY/busybox:latest" "docker://$AUTH_REGISTRY/private:1"
	refused Unauthenticated "$AUTH_REGISTRY/private:1" --creds "alice:$WRONG"
	refused Unauthenticated "$AUTH_REGISTRY/private:1"
	pull_image "$AUTH_REGISTRY/private:1" guest --creds "alice:$PASSWORD"
	# One tenant's pull does not open the image to another.
	run ! pull_image "$AUTH_REGISTRY/private:1" guest --creds "alice:$WRONG"
	assert_contains "$output" "code = Unauthenticated"
	cri rmi --runtime-handler husk "$AUTH_REGISTRY/private:1"
}

@test "registry down" {
	registry_stop
	refused RegistryUnavailable "$REGISTRY/busybox:latest"
	registry_start
	pull_image "$REGISTRY/busybox:latest" guest
	cri rmi --runtime-handler husk "$REGISTRY/busybox:latest"
}

@test "a registry that lies about the manifest" {
	local ref digest
	ref=$(push_image liar:1 --layer /a=1)
	digest=$(jq -r .digest "$HUSK_TMP/tmp/liar-1.json")
	sed -i 's/"schemaVersion":2/"schemaVersion":2 /' "$(blob "$digest")"
	refused DataLoss "$REGISTRY/liar@$digest"
}

@test "a registry that lies about the config" {
	local ref config
	ref=$(push_image liar:2 --layer /a=2 --user web)
	config=$(jq -r '.instances[0].configDigest' "$HUSK_TMP/tmp/liar-2.json")
	sed -i 's/"User":"web"/"User":"roo"/' "$(blob "$config")" # the same size, another user
	refused DataLoss "$ref"
}

# lying_registry: a registry that answers every manifest with 5 MiB, on the loopback, where it needs no TLS. Sets LIAR.
lying_registry() {
	local script=$BATS_TEST_TMPDIR/answer port=$((20000 + RANDOM % 10000))
	cat >"$script" <<-'SH'
		#!/bin/bash
		read -r _ path _
		while read -r line && [[ $line != $'\r' ]]; do :; done
		size=$((5 << 20))
		[[ $path == */manifests/* ]] || size=2
		printf 'HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n' "$size"
		printf 'Content-Type: application/vnd.oci.image.manifest.v1+json\r\n\r\n'
		printf '{}'
		head -c $((size - 2)) /dev/zero | tr '\0' ' '
	SH
	chmod +x "$script"
	socat "TCP-LISTEN:$port,bind=127.0.0.1,fork,reuseaddr,max-children=8" "EXEC:$script" 2>/dev/null 3>&- &
	LIAR_PID=$!
	LIAR=127.0.0.1:$port
	eventually 10 bash -c "</dev/tcp/127.0.0.1/$port"
}

@test "an oversized manifest" {
	lying_registry
	refused ResourceExhausted "$LIAR/big:1"
}

@test "no image: an artifact" {
	"$HUSK_BIN_DIR/mkimage" artifact --output "oci:$HUSK_TMP/tmp/artifact:latest" >/dev/null
	refused InvalidArgument "$(push_layout "$HUSK_TMP/tmp/artifact:latest" artifact:1)"
}

@test "an index without this platform" {
	refused NotFound "$(push_image elsewhere:1 --layer /a=4 --index linux/s390x,linux/ppc64le)"
}

@test "policy that rejects: at the pull, by namespace" {
	pod_json locked '.metadata.namespace = "locked"' >/dev/null
	run ! pull_image "$REGISTRY/busybox:latest" locked --runtime-handler husk
	assert_contains "$output" "pulling image: SignatureValidationFailed: "
	assert_contains "$output" "$REGISTRY/busybox:latest"
	assert_eq "$(stock images -q | sort)" "$IMAGES_BEFORE"
}

@test "a key that is not there: the pull is refused in the pod, and the host still read no layer" {
	local ref mark
	"$HUSK_BIN_DIR/mkimage" keygen "$HUSK_TMP/tmp/other" >/dev/null
	ref=$(push_image sealed:1 --layer /s=sealed --encrypt-key "$HUSK_TMP/tmp/other/public.pem")
	mark=$(log_mark)
	run ! pull_image "$ref" guest
	assert_contains "$output" "pulling image: rpc error: code = PermissionDenied desc = "
	assert_contains "$output" "key"
	assert_contains "$output" "$REGISTRY/sealed@sha256:"
	# shellcheck disable=SC2046
	assert_eq "$(blob_requests "$mark" "$NODE_IP" $(layer_digests "$ref"))" 0
	assert_eq "$(stock images -q | sort)" "$IMAGES_BEFORE" "images in the store"
}

@test "a key that is not there, with eager_pull = false: it is missed when the container is created" {
	local ref pod image mark
	"$HUSK_BIN_DIR/mkimage" keygen "$HUSK_TMP/tmp/lost" >/dev/null
	ref=$(push_image sealed:2 --layer /s=sealed-too --encrypt-key "$HUSK_TMP/tmp/lost/public.pem")
	pod=$(run_pod lazy lazy)
	mark=$(log_mark)
	image=$(pull_image "$ref" lazy)
	# shellcheck disable=SC2046
	assert_eq "$(blob_requests "$mark" "" $(layer_digests "$ref"))" 0 "requests for layers"
	run ! create_ctr "$pod" lazy c "$image=$ref" -- "${SLEEP[@]}"
	assert_contains "$output" "unwrap layer key" # CRI-O, which asked the shim, keeps its words and not its code
	assert_contains "$output" "$REGISTRY/sealed@sha256:"
	# shellcheck disable=SC2046
	assert_eq "$(blob_requests "$mark" "$NODE_IP" $(layer_digests "$ref"))" 0 "requests of the host for layers"
	assert_eq "$(crictl ps -a -q --pod "$pod")" ""
	# With the key there the same record serves.
	cp "$HUSK_TMP/tmp/lost/private.pem" "$HUSK_TMP/keys/lost.pem"
	ctr_runs "$(run_ctr "$pod" lazy c "$image=$ref" -- "${SLEEP[@]}")"
	crictl rmp -f "$pod"
	cri rmi --runtime-handler lazy "$ref"
}

@test "no log holds a credential" {
	refute_in_logs "$PASSWORD"
	refute_in_logs "$WRONG"
	refute_in_logs "$(printf 'alice:%s' "$PASSWORD" | base64)"
	refute_in_logs "$(printf 'alice:%s' "$WRONG" | base64)"
}
