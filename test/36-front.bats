#!/usr/bin/env bats
# What a pod may not say of itself and what a container may not mount, on a real CRI-O; and that everything else is
# CRI-O's own answer.

# shellcheck disable=SC2030,SC2031,SC2153 # each test is a subshell; front.bash sets GUEST, REF and more in the test's own
load helpers
load front

# ---- what a pod may not say of itself ----

# claims prints jq programs, each of which makes a pod or a container say what only CRI-O or husk may say.
claims() {
	local key
	for key in SandboxID ContainerType ImageName Image ResolvPath RuntimeHandler IP.0; do
		printf '.annotations = {"io.kubernetes.cri-o.%s": "sandbox"}\n.labels = {"io.kubernetes.cri-o.%s": "sandbox"}\n' "$key" "$key"
	done
	printf '.%s = {"husk.dev/image-ref": "registry.local/other@sha256:0"}\n' annotations labels
}

@test "forged keys on a guest-pull pod: no pod" {
	local claim
	BEFORE=$(everything)
	while read -r claim; do
		run ! run_pod forged husk "$claim"
		assert_contains "$output" "code = InvalidArgument"
		assert_contains "$output" "must not set"
	done < <(claims)
	assert_eq "$(everything)" "$BEFORE"
}

@test "forged keys on a container of a guest-pull pod: no container" {
	local claim
	image forged
	guest_pull "$REF"
	BEFORE=$(everything)
	while read -r claim; do
		run ! create_ctr "$GUEST" guest forged "$ID=$REF" "$claim" -- "${SLEEP[@]}"
		assert_contains "$output" "code = InvalidArgument"
		assert_contains "$output" "must not set"
	done < <(claims)
	assert_eq "$(everything)" "$BEFORE"
	create_ctr "$GUEST" guest forged "$ID=$REF" '.annotations = {"io.kubernetes.cri-o.umask": "022"}' -- "${SLEEP[@]}" # what a pod may say
}

# forged_outcome CLIENT: what becomes of an ordinary pod and its container that claim what a guest-pull pod must not.
forged_outcome() {
	local pod ctr file pod_file claim
	claim='{"io.kubernetes.cri-o.SandboxID": "x", "io.kubernetes.cri-o.ContainerType": "sandbox", "io.kubernetes.cri-o.ImageName": "registry.local/other:1"}'
	pod_file=$(pod_json claims ".annotations = $claim | .labels = {\"io.kubernetes.cri-o.ImageName\": \"y\"}")
	pod=$("$1" runp -r runc "$pod_file") || return 1
	"$1" pull --pod-config "$pod_file" "$BUSYBOX" || return 1
	file=$(ctr_json claims "$BUSYBOX" ".annotations = $claim | .labels = {\"io.kubernetes.cri-o.SandboxID\": \"z\"}" -- "${SLEEP[@]}")
	ctr=$("$1" create "$pod" "$file" "$pod_file") || return 1
	"$1" start "$ctr" >/dev/null || return 1
	"$1" exec -s "$ctr" hostname
	"$1" inspectp "$pod" | jq -cS '.status | del(.id, .createdAt, .network)'
	"$1" inspect "$ctr" | jq -cS '.status | del(.id, .createdAt, .startedAt, .logPath)'
	"$1" rmp -f "$pod" >/dev/null
	"$1" pods -q --id "$pod"
}

@test "forged keys on an ordinary pod and its container: as on stock CRI-O" {
	local got want
	got=$(forged_outcome cri)
	want=$(forged_outcome stock)
	assert_eq "$got" "$want"
	assert_contains "$got" '"state":"CONTAINER_RUNNING"'
	# Husk's own keys are read in the status of every container.
	BEFORE=$(everything)
	refused "code = InvalidArgument" create_ctr "$PLAIN" plain claims "$BUSYBOX" '.annotations = {"husk.dev/image-ref": "x"}' -- "${SLEEP[@]}"
}

# ---- image volumes ----

# volume IMAGE prints the jq program that mounts an image; the pod says REF.
volume() { printf '.mounts = [{container_path: "/v", readonly: true, image: {image: "%s", user_specified_image: "%s"}}]' "$1" "$REF"; }

@test "an image volume without layers is refused in an ordinary container" {
	local name
	image volume-record
	guest_pull "$REF"
	BEFORE=$(everything)
	for name in "$REF" "$PINNED" "$ID" "${ID:0:12}"; do
		refused "code = NotFound" create_ctr "$PLAIN" plain v "$BUSYBOX" "$(volume "$name")" -- "${SLEEP[@]}"
		assert_contains "$output" "no layers"
		assert_contains "$output" "$name"
	done
}

@test "an image volume of a guest-pull container: content from the pod, and nothing of the host's" {
	local name ctr data
	data=$(push_image volume-data:1 --layer /model/weights=heavy)
	image volume-guest
	guest_pull "$REF"
	BEFORE=$(everything)
	# What nobody has pulled, and what leads out of the image.
	refused "code = NotFound" create_ctr "$GUEST" guest v "$ID=$REF" "$(volume "$REGISTRY/none:1")" -- "${SLEEP[@]}"
	for name in ../etc /etc; do
		refused "code = InvalidArgument" create_ctr "$GUEST" guest v "$ID=$REF" \
			"$(volume "$REF") | .mounts[0].image_sub_path = \"$name\"" -- "${SLEEP[@]}"
		assert_contains "$output" "$name"
	done
	# As kubelet does: the volume's image is pulled for the pod, and mounted by its ID.
	ctr=$(run_ctr "$GUEST" guest v "$ID=$REF" "$(volume "$(pull_image "$data" guest)")" -- "${SLEEP[@]}")
	assert_eq "$(crictl exec -s "$ctr" cat /v/model/weights)" heavy
	run ! crictl exec -s "$ctr" touch /v/new
	assert_contains "$output" "Read-only"
	crictl rm -f "$ctr"
	ctr=$(run_ctr "$GUEST" guest v "$ID=$REF" "$(volume "$data") | .mounts[0].image_sub_path = \"model\"" -- "${SLEEP[@]}")
	assert_eq "$(crictl exec -s "$ctr" cat /v/weights)" heavy
	crictl rm -f "$ctr"
	husk rm "$data"
}

# volume_outcome CLIENT IMAGE: what becomes of an ordinary container with an image volume.
volume_outcome() {
	local ctr file
	file=$(ctr_json "volume-$1" "$BUSYBOX" "$(volume "$2")" -- "${SLEEP[@]}")
	ctr=$("$1" create "$PLAIN" "$file" "$HUSK_TMP/tmp/plain-pod.json" 2>&1) || {
		echo "$ctr"
		return 0
	}
	"$1" start "$ctr" 2>&1 | sed "s/$ctr/ID/g"
	"$1" exec -s "$ctr" cat /v/data 2>&1
	"$1" inspect "$ctr" | jq -cS '.status.mounts'
	"$1" rm -f "$ctr" >/dev/null
}

@test "an image volume of an ordinary container: as on stock CRI-O" {
	local name
	image volume-full
	full_pull "$REF"
	for name in "$REF" "$ID" "$REGISTRY/none:1"; do
		assert_eq "$(volume_outcome cri "$name")" "$(volume_outcome stock "$name")" "volume $name"
	done
	assert_contains "$(volume_outcome cri "$REF")" volume-full
}

# ---- limits ----

@test "max_layers and max_image_size of a handler hold at CreateContainer too" {
	local pod handler
	image limited --layer /second=2 # three layers
	guest_pull "$REF"               # for a handler without limits
	for handler in small tight; do
		pod=$(run_pod "limited-$handler" "$handler")
		BEFORE=$(everything)
		refused "code = ResourceExhausted" create_ctr "$pod" "limited-$handler" c "$ID=$REF" -- "${SLEEP[@]}"
		case $handler in
		small) assert_contains "$output" "has 3 layers, and runtime handler \"small\" allows 2" ;;
		tight) assert_contains "$output" "runtime handler \"tight\" allows 65536" ;;
		esac
		crictl rmp -f "$pod"
	done
	create_ctr "$GUEST" guest limited "$ID=$REF" -- "${SLEEP[@]}"
}

@test "max_layers holds for a record that is made from CRI-O's image" {
	local pod
	image derived --layer /second=2
	full_pull "$REF"
	pod=$(run_pod derived small)
	run ! create_ctr "$pod" derived c "$ID=$REF" -- "${SLEEP[@]}"
	assert_contains "$output" "code = ResourceExhausted"
	assert_eq "$(cri ps -a -q --pod "$pod")" ""
	crictl rmp -f "$pod"
}

# ---- long streams ----

# stream FILE SOCKET: the container events of a socket, into a file, until the test ends.
stream() {
	"$HUSK_BIN_DIR/crictl" -r "unix://$2" events >"$BATS_TEST_TMPDIR/$1" 3>&- &
	STREAMS+=($!)
}

# event FILE CONTAINER TYPE: the file has it.
event() { jq -es --arg id "$2" --arg t "$3" 'any(.[]; .containerId == $id and .containerEventType == $t)' "$BATS_TEST_TMPDIR/$1"; }

# primed: both streams deliver; a client is told nothing of what was before it.
primed() {
	local ctr
	ctr=$(create_ctr "$PLAIN" plain prime "$BUSYBOX" '.labels = {"io.kubernetes.pod.uid": "plain-uid"}' -- "${SLEEP[@]}") || return 1
	crictl rm "$ctr"
	event front "$ctr" CONTAINER_DELETED_EVENT && event stock "$ctr" CONTAINER_DELETED_EVENT
}

@test "a stream of events goes on between calls, is CRI-O's, and names the true image" {
	local ctr type i calls client made=()
	STREAMS=()
	stream front "$FRONT_SOCK"
	stream stock "$BACKEND_SOCK"
	eventually 10 primed
	image streamed
	for i in 1 2; do # the second time the stream is no longer young
		pull_image "$REF" guest
		{ cri ps -a && cri images && cri pods && cri version; } >/dev/null &
		calls=$!
		ctr=$(create_ctr "$GUEST" guest "streamed-$i" "$ID=$REF" '.labels = {"io.kubernetes.pod.uid": "guest-uid"}' -- "${SLEEP[@]}")
		made+=("$ctr")
		crictl start "$ctr"
		eventually 5 event front "$ctr" CONTAINER_STARTED_EVENT # while it runs, not when the stream ends
		crictl rm -f "$ctr"
		for type in CREATED STARTED STOPPED DELETED; do
			eventually 5 event front "$ctr" "CONTAINER_${type}_EVENT"
			eventually 5 event stock "$ctr" "CONTAINER_${type}_EVENT"
		done
		wait "$calls"
	done
	jq -se --arg ctr "$ctr" --arg ref "$REF" --arg pinned "$PINNED" --arg id "$ID" '[.[].containersStatuses[]? | select(.id == $ctr)] |
		length >= 2 and all(.[]; .image.image == $ref and .imageRef == $pinned and .imageId == $id)' "$BATS_TEST_TMPDIR/front"
	# Whom a guest-pull container runs as only its pod knows; CRI-O says 0.
	# shellcheck disable=SC2016
	local same='[.[] | select(.containerId | IN($ARGS.positional[])) | del(.containersStatuses[]? | .image, .imageRef, .imageId, .user)]'
	assert_eq "$(jq -csS "$same" "$BATS_TEST_TMPDIR/front" --args "${made[@]}")" \
		"$(jq -csS "$same" "$BATS_TEST_TMPDIR/stock" --args "${made[@]}")" "the rest of the events"
	for client in "${STREAMS[@]}"; do kill -0 "$client"; done # neither has ended
}

# ---- what is CRI-O's own ----

@test "ImageFsInfo, Version and Status are CRI-O's answers" {
	# CRI-O answers some lists in the order of a Go map.
	local no_order='.info.config |= fromjson | walk(if type == "array" then sort_by(tostring) else . end)'
	local no_time='walk(if type == "object" then del(.timestamp) else . end)'
	assert_eq "$(cri version)" "$(stock version)"
	assert_eq "$(cri info | jq -cS "$no_order")" "$(stock info | jq -cS "$no_order")"
	assert_eq "$(cri info | jq -r '.status.conditions[] | select(.type == "RuntimeReady").status')" true
	assert_eq "$(cri imagefsinfo | jq -cS "$no_time")" "$(stock imagefsinfo | jq -cS "$no_time")"
	assert_contains "$(cri imagefsinfo)" "$CRIO_ROOT"
}

# ---- nested indexes ----

@test "an index in an index: runs, and every report says the outer digest" {
	local inner outer=$BATS_TEST_TMPDIR/outer.json digest ctr image instance pinned
	REF=$(push_image nested:inner --layer /data=nested --index linux/amd64,linux/arm64)
	inner=$(summary nested-inner .digest)
	instance=$(summary nested-inner '.instances[] | select(.platform == "linux/amd64").manifestDigest')
	jq -nc --arg d "$inner" --argjson size "$(skopeo inspect --raw --tls-verify=false "docker://$REF" | wc -c)" '{schemaVersion: 2,
		mediaType: "application/vnd.oci.image.index.v1+json",
		manifests: [{mediaType: "application/vnd.oci.image.index.v1+json", digest: $d, size: $size}]}' | tr -d '\n' >"$outer"
	digest=sha256:$(sha256sum <"$outer" | cut -d ' ' -f 1)
	curl -sf -X PUT -H 'Content-Type: application/vnd.oci.image.index.v1+json' --data-binary @"$outer" "http://$REGISTRY/v2/nested/manifests/outer"
	REF=$REGISTRY/nested:outer pinned=$REGISTRY/nested@$digest
	image=$(pull_image "$REF" guest)
	ctr=$(run_ctr "$GUEST" guest nested "$image=$REF" -- "${SLEEP[@]}")
	assert_eq "$(crictl exec -s "$ctr" cat /data)" nested
	assert_eq "$(ctr_status "$ctr" '[.image.image, .imageRef, .imageId] | join(" ")')" "$REF $pinned $image"
	cri images -o json | jq -e --arg id "$image" --arg outer "$pinned" --arg inst "$REGISTRY/nested@$instance" \
		'.images[] | select(.id == $id).repoDigests | index($outer) != null and index($inst) != null'
	assert_eq "$(husk resolve --format json "$pinned" | jq -c '.[0] | [.manifest_digest, .index_digests]')" \
		"[\"$instance\",[\"$digest\",\"$inner\"]]"
}
