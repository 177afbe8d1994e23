#!/usr/bin/env bats
# One image under an ordinary handler and under husk on one node: neither spoils the other.

load helpers

setup() {
	node_up
	husk_start
	REF=$(push_image app:1 --layer /data=some --cmd /bin/sh --cmd -c --cmd "${SLEEP[2]}")
	PINNED=$REGISTRY/app@$(jq -r .digest "$HUSK_TMP/tmp/app-1.json")
	IMAGE_ID=$(jq -r '.instances[0].configDigest | ltrimstr("sha256:")' "$HUSK_TMP/tmp/app-1.json")
}

teardown() {
	show_logs_on_failure
	nodes_down
}

# runs_as POD HANDLER REFERENCE: pulls for the pod as kubelet does, runs a container, and checks what status says.
runs_as() {
	local pod image ctr
	pod=$(run_pod "$1" "$2") || return 1
	echo "$pod" >"$BATS_TEST_TMPDIR/$2.pod"
	image=$(pull_image "$3" "$1") || return 1
	ctr=$(run_ctr "$pod" "$1" c "$image=$3") || return 1
	ctr_runs "$ctr" || fail "$1 does not run" || return 1
	assert_eq "$(crictl exec -s "$ctr" cat /data)" some || return 1
	assert_eq "$(ctr_status "$ctr" .imageId)" "$IMAGE_ID" "image_id of $1"
}

# present REFERENCE: kubelet's presence check, which brings annotations and no handler.
present() { cri inspecti -a kubernetes.io/config.seen=now -a kubernetes.io/config.source=api "$1" >/dev/null 2>&1; }

both_orders() { # FIRST SECOND REFERENCE
	runs_as one "$1" "$3"
	runs_as two "$2" "$3"
	present "$REF" # runc has pulled it in full by now
	# One entry is CRI-O's, the other says whose it is.
	cri images -o json | jq -e --arg id "$IMAGE_ID" '[.images[] | select(.id == $id) | .spec.runtimeHandler // ""] | sort == ["", "husk"]'
	# Removing husk's leaves CRI-O's, and the other pod runs on.
	crictl rmp -f "$(<"$BATS_TEST_TMPDIR/husk.pod")"
	cri rmi --runtime-handler husk "$3"
	present "$REF"
	assert_eq "$(cri images -o json | jq --arg id "$IMAGE_ID" '[.images[] | select(.id == $id)] | length')" 1
	assert_eq "$(cri ps -o json | jq '[.containers[] | select(.state == "CONTAINER_RUNNING")] | length')" 1
}

@test "runc, then husk, by tag" { both_orders runc husk "$REF"; }
@test "husk, then runc, by tag" { both_orders husk runc "$REF"; }
@test "runc, then husk, by digest" {
	crictl pull "$REF" # so that the tag is there to ask for
	both_orders runc husk "$PINNED"
}
@test "husk, then runc, by digest" {
	runs_as one husk "$PINNED"
	run ! present "$PINNED"
	runs_as two runc "$PINNED"
	present "$PINNED"
	assert_eq "$(cri ps -o json | jq '[.containers[] | select(.state == "CONTAINER_RUNNING")] | length')" 2
}

@test "kubelet finds the image that an ordinary pod pulled, and husk asks no registry for it" {
	local pod ctr mark
	runs_as ordinary runc "$REF"
	present "$REF"
	pod=$(run_pod guest husk)
	mark=$(log_mark)
	ctr=$(run_ctr "$pod" guest c "$IMAGE_ID=$REF") # IfNotPresent: the ID that ImageStatus answered
	assert_eq "$(crictl exec -s "$ctr" cat /data)" some
	assert_eq "$(ctr_status "$ctr" .imageRef)" "$PINNED"
	assert_eq "$(ctr_status "$ctr" .imageId)" "$IMAGE_ID"
	assert_eq "$(log_since "$mark" | jq -s --arg ip "$NODE_IP" '[.[] | select(.remote == $ip)] | length')" 0 "requests of the host"
}

@test "an ordinary pod never sees a layer-less image" {
	local pod record
	runs_as guest husk "$REF"
	run ! present "$REF"
	run ! present "$PINNED"
	run ! stock inspecti "$REF"
	# CRI-O itself would show the record; through husk only the true image is listed, with its handler.
	record=$(stock images -o json | jq -r '.images[] | select((.repoTags | length) == 0 and (.repoDigests | length) <= 1) | .id' | grep -v "$IMAGE_ID" | head -1)
	[[ -n $record ]]
	cri images -o json | jq -e --arg r "$record" 'all(.images[]; .id != $r)'
	cri images -o json | jq -e --arg id "$IMAGE_ID" '[.images[] | select(.id == $id)] | length == 1 and .[0].spec.runtimeHandler == "husk"'
	# Nothing starts with an empty rootfs: an ordinary container of that name is not made.
	pod=$(run_pod plain runc)
	run ! create_ctr "$pod" plain c "$REF"
	run ! create_ctr "$pod" plain c "$IMAGE_ID=$REF"
	run ! create_ctr "$pod" plain c "$record=$REF"
}

@test "remove: in use is refused, by reference only that one, by ID all of them" {
	local other ctr pod image
	other=$REGISTRY/app:2
	skopeo copy -q --insecure-policy --src-tls-verify=false --dest-tls-verify=false "docker://$REF" "docker://$other"
	pod=$(run_pod guest husk)
	image=$(pull_image "$REF" guest)
	pull_image "$other" guest
	ctr=$(run_ctr "$pod" guest c "$image=$REF")
	run ! cri rmi "$IMAGE_ID"
	assert_contains "$output" "in use"
	ctr_runs "$ctr"
	crictl rmp -f "$pod"
	cri rmi --runtime-handler husk "$other"
	cri images -o json | jq -e --arg a "$REF" --arg b "$other" '[.images[].repoTags[]?] | index($a) != null and index($b) == null'
	cri rmi "$IMAGE_ID"
	cri images -o json | jq -e --arg id "$IMAGE_ID" 'all(.images[]; .id != $id)'
	run ! "$HUSK_BIN_DIR/husk" --config "$HUSK_TMP/husk.toml" inspect "$IMAGE_ID"
}

@test "the command line shows what the node has" {
	local husk=("$HUSK_BIN_DIR/husk" --config "$HUSK_TMP/husk.toml")
	runs_as guest husk "$REF"
	run -0 "${husk[@]}" images
	assert_contains "$output" "$REF"
	"${husk[@]}" inspect "$REF" | jq -e --arg id "$IMAGE_ID" '.[0].image_id == $id and .[0].layers == 2 and .[0].encrypted_layers == 0'
	assert_eq "$("${husk[@]}" pull "$REF")" "$IMAGE_ID"
	run -4 "${husk[@]}" rm "$IMAGE_ID"
	run -3 "${husk[@]}" rm "$REGISTRY/none:1"
}
