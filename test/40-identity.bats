#!/usr/bin/env bats
# What was pulled is what runs, and status says so.

load helpers

setup_file() {
	node_up
	husk_start
}

teardown_file() {
	nodes_down
}

teardown() {
	show_logs_on_failure
}

@test "a tag that moves between pull and create does not change what runs" {
	local pod ref old new image ctr
	ref=$(push_image moving:1 --layer /version=old)
	old=$(jq -r .digest "$HUSK_TMP/tmp/moving-1.json")
	pod=$(run_pod moving husk)
	image=$(pull_image "$ref" moving)
	push_image moving:1 --layer /version=new
	new=$(jq -r .digest "$HUSK_TMP/tmp/moving-1.json")
	[[ $old != "$new" ]]

	ctr=$(run_ctr "$pod" moving first "$image=$ref" -- "${SLEEP[@]}")
	assert_eq "$(crictl exec -s "$ctr" cat /version)" old
	assert_eq "$(ctr_status "$ctr" .imageRef)" "$REGISTRY/moving@$old"
	assert_eq "$(ctr_status "$ctr" .imageId)" "$image"

	# The next pull moves the tag; the running container stays what it is.
	image=$(pull_image "$ref" moving)
	ctr_new=$(run_ctr "$pod" moving second "$image=$ref" -- "${SLEEP[@]}")
	assert_eq "$(crictl exec -s "$ctr_new" cat /version)" new
	assert_eq "$(ctr_status "$ctr_new" .imageRef)" "$REGISTRY/moving@$new"
	assert_eq "$(ctr_status "$ctr" .imageRef)" "$REGISTRY/moving@$old"
	crictl rmp -f "$pod"
}

@test "an encrypted image and its plain twin share an image ID and stay apart" {
	local pod plain sealed image_plain image_sealed ctr
	"$HUSK_BIN_DIR/mkimage" keygen "$HUSK_TMP/tmp/pair" >/dev/null
	cp "$HUSK_TMP/tmp/pair/private.pem" "$HUSK_TMP/keys/twin.pem"
	plain=$(push_image twin:plain --layer /a=same)
	sealed=$(push_image twin:sealed --layer /a=same --encrypt-key "$HUSK_TMP/tmp/pair/public.pem")
	pod=$(run_pod twin husk)
	image_plain=$(pull_image "$plain" twin)
	image_sealed=$(pull_image "$sealed" twin)
	assert_eq "$image_plain" "$image_sealed" "image ID"
	ctr=$(run_ctr "$pod" twin sealed "$image_sealed=$sealed" -- "${SLEEP[@]}")
	assert_eq "$(ctr_status "$ctr" .imageRef)" "$REGISTRY/twin@$(jq -r .digest "$HUSK_TMP/tmp/twin-sealed.json")"
	ctr=$(run_ctr "$pod" twin plain "$image_plain=$plain" -- "${SLEEP[@]}")
	assert_eq "$(ctr_status "$ctr" .imageRef)" "$REGISTRY/twin@$(jq -r .digest "$HUSK_TMP/tmp/twin-plain.json")"
	crictl rmp -f "$pod"
}

@test "every report of a container names the image: status, list, events" {
	local pod ref image ctr pinned
	ref=$(push_image told:1 --layer /a=told)
	pinned=$REGISTRY/told@$(jq -r .digest "$HUSK_TMP/tmp/told-1.json")
	cri events >"$BATS_TEST_TMPDIR/events" 3>&- &
	local client=$!
	sleep 0.5
	pod=$(run_pod told husk)
	image=$(pull_image "$ref" told)
	# CRI-O finds the containers of an event by this label, which kubelet always sets.
	ctr=$(run_ctr "$pod" told c "$image=$ref" '.labels = {"io.kubernetes.pod.uid": "told-uid"}' -- "${SLEEP[@]}")
	crictl inspect "$ctr" | jq -e --arg ref "$ref" --arg pinned "$pinned" --arg id "$image" \
		'.status | .image.image == $ref and .imageRef == $pinned and .imageId == $id'
	cri ps -o json | jq -e --arg ctr "$ctr" --arg pinned "$pinned" --arg id "$image" \
		'.containers[] | select(.id == $ctr) | .imageRef == $pinned and .imageId == $id and .image.image != ""'
	crictl rmp -f "$pod"
	kill "$client"
	jq -se --arg ctr "$ctr" --arg pinned "$pinned" 'map(.containersStatuses[]? | select(.id == $ctr)) |
		length > 0 and all(.imageRef == $pinned and .image.image != "")' "$BATS_TEST_TMPDIR/events"
}

@test "a pod cannot claim another handler than it runs under" {
	local ref pod file claim='.labels = {"io.kubernetes.cri-o.RuntimeHandler": "runc"}'
	ref=$(push_image claim:1 --layer /a=claim)
	run ! run_pod claim husk "$claim"
	assert_contains "$output" "must not set the label"
	# CRI-O itself believes the label; a pod that it made is not pulled for on the host all the same.
	file=$(pod_json claim "$claim")
	pod=$(stock runp -r husk "$file")
	run ! pull_image "$ref" claim
	assert_contains "$output" "must not set the label"
	refute_contains "$(stock images -o json)" "$ref"
	stock rmp -f "$pod"
}
