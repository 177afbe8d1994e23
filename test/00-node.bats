#!/usr/bin/env bats
# The node under test itself: stock CRI-O and a registry, without husk.

load helpers

setup_file() {
	NODE_SHIM=none node_up --auth alice:s3cret-word
}

teardown_file() {
	nodes_down
}

teardown() {
	show_logs_on_failure
}

@test "CRI-O is stock 1.34.0 and ready" {
	assert_contains "$(crictl version)" "RuntimeVersion:  1.34.0"
	crictl info | jq -e '[.status.conditions[].status] == [true, true]'
	[[ $(crictl info | jq -r '.runtimeHandlers[].name' | sort | xargs) == "crun runc runc2" ]] # CRI-O adds the crun it finds
}

@test "a runc pod runs busybox: logs, exec, stats, status" {
	local image pod ctr
	image=$(pull_image "$REGISTRY/busybox:latest")
	pod=$(run_pod first runc)
	ctr=$(run_ctr "$pod" first c1 "$image=$REGISTRY/busybox:latest" -- /bin/sh -c "echo hello; ${SLEEP[2]}")
	ctr_runs "$ctr"
	eventually 10 grep -q hello "$NODE_DIR/log/pods/first/c1.log"
	assert_eq "$(crictl logs "$ctr")" hello

	assert_eq "$(crictl exec -s "$ctr" id -u)" 0
	assert_eq "$(echo piped | crictl exec -i "$ctr" cat)" piped
	run -3 crictl exec -s "$ctr" sh -c 'exit 3'
	run ! crictl exec "$ctr" false

	crictl stats -o json "$ctr" | jq -e '.stats[0].memory.usageBytes.value | tonumber > 0'
	assert_eq "$(ctr_status "$ctr" .image.image)" "$REGISTRY/busybox:latest"
	assert_eq "$(crictl ps -q)" "$ctr"
	assert_eq "$(crictl pods -q)" "$pod"
	crictl inspecti "$REGISTRY/busybox:latest" | jq -e '.status.repoTags | length == 1'

	crictl stop "$ctr"
	ctr_exited "$ctr"
	crictl rm "$ctr"
	crictl rmp -f "$pod"
	assert_eq "$(crictl pods -q)" ""
}

@test "the registry sees a pod's own address, and the host's" {
	local pod ctr mark address
	crictl pull "$REGISTRY/busybox:latest"
	pod=$(run_pod address runc2)
	ctr=$(run_ctr "$pod" address c1 "$REGISTRY/busybox:latest" -- "${SLEEP[@]}")
	address=$(pod_ip "$pod")
	[[ $address != "$NODE_IP" ]]

	mark=$(log_mark)
	crictl exec -s "$ctr" wget -q -O /dev/null \
		--header "Accept: application/vnd.oci.image.manifest.v1+json" "http://$REGISTRY/v2/busybox/manifests/latest"
	run log_since "$mark"
	jq -se --arg ip "$address" 'map([.method, .path, .remote, .status]) == [["GET", "/v2/busybox/manifests/latest", $ip, 200]]' <<<"$output"

	mark=$(log_mark)
	crictl exec -s "$ctr" wget -q -O /dev/null "http://$REGISTRY/v2/busybox/blobs/$(layer_digests "$REGISTRY/busybox:latest")"
	assert_eq "$(blob_requests "$mark" "$address" "$(layer_digests "$REGISTRY/busybox:latest")")" 1
	assert_eq "$(blob_requests "$mark" "$NODE_IP" "$(layer_digests "$REGISTRY/busybox:latest")")" 0
	crictl rmp -f "$pod"
}

@test "the second registry wants credentials" {
	skopeo copy -q --insecure-policy --src-tls-verify=false --dest-tls-verify=false --dest-creds alice:s3cret-word \
		"docker://$REGISTRY/busybox:latest" "docker://$AUTH_REGISTRY/private:1"
	run ! crictl pull "$AUTH_REGISTRY/private:1"
	run ! crictl pull --creds alice:wr0ng-word "$AUTH_REGISTRY/private:1"
	local mark
	mark=$(log_mark --auth-registry)
	crictl pull --creds alice:s3cret-word "$AUTH_REGISTRY/private:1"
	log_since "$mark" --auth-registry | jq -se 'any(.status == 401) and any(.status == 200)'
	refute_in_logs s3cret-word
	refute_in_logs wr0ng-word
	crictl rmi "$AUTH_REGISTRY/private:1"
}

@test "a container outlives CRI-O's restart and its kill" {
	local pod ctr signal
	crictl pull "$REGISTRY/busybox:latest"
	pod=$(run_pod restart runc)
	ctr=$(run_ctr "$pod" restart c1 "$REGISTRY/busybox:latest" -- "${SLEEP[@]}")
	for signal in TERM KILL; do
		crio_stop --signal "$signal"
		run ! crictl version
		crio_start
		ctr_runs "$ctr"
		assert_eq "$(crictl exec -s "$ctr" echo alive)" alive
	done
	crictl rmp -f "$pod"
}

@test "the registry stops, and starts again with what it had" {
	registry_stop
	run ! crictl pull "$REGISTRY/busybox:latest"
	registry_start
	crictl pull "$REGISTRY/busybox:latest"
}

@test "container events arrive" {
	cri events >"$BATS_TEST_TMPDIR/events" 3>&- &
	local client=$! pod
	sleep 0.5
	pod=$(run_pod events runc)
	crictl rmp -f "$pod"
	eventually 10 grep -q CONTAINER_STOPPED_EVENT "$BATS_TEST_TMPDIR/events"
	kill "$client"
	jq -se --arg pod "$pod" 'map(select(.containerId == $pod).containerEventType) | index("CONTAINER_STARTED_EVENT") != null' "$BATS_TEST_TMPDIR/events"
}

@test "two nodes at once do not meet, and go down without a trace" {
	local first=$HUSK_TMP second network pod
	NODE_SHIM=none node_up
	second=$HUSK_TMP
	network=${CGROUP_PARENT#/}
	[[ $second != "$first" ]]
	pod=$(run_pod same-name runc)
	crictl pull "$REGISTRY/busybox:latest"
	run_ctr "$pod" same-name c1 "$REGISTRY/busybox:latest" -- "${SLEEP[@]}"

	local other
	other=$(crictl pods -q)
	node_use "$first"
	refute_contains "$(crictl pods -q)" "$other"
	pod=$(run_pod same-name runc)
	crictl rmp -f "$pod"

	[[ -n $(traces "$second" "$network") ]]
	run --separate-stderr node_down "$second"
	assert_eq "$status" 0
	# shellcheck disable=SC2154 # set by run
	assert_eq "$stderr" "" "warnings" # the pod's orderly end left nothing to force
	assert_eq "$(traces "$second" "$network")" ""
	[[ ! -e $second ]]
	crictl version
}

@test "a node whose daemons were killed goes down without a trace" {
	local first=$HUSK_TMP broken network pod
	NODE_SHIM=none node_up
	broken=$HUSK_TMP
	network=${CGROUP_PARENT#/}
	pod=$(run_pod broken runc)
	crictl pull "$REGISTRY/busybox:latest"
	run_ctr "$pod" broken c1 "$REGISTRY/busybox:latest" -- "${SLEEP[@]}"
	kill -9 "$(jq '.daemons.crio.reaper.pid' "$NODE_DIR/node.json")" "$(daemon_pid crio)" "$(daemon_pid registry)"

	run --separate-stderr node_down "$broken"
	assert_eq "$status" 0
	assert_contains "$stderr" "was left"
	assert_eq "$(traces "$broken" "$network")" ""
	[[ ! -e $broken ]]
	node_use "$first"
}

@test "a node that does not come up leaves its logs and nothing else" {
	printf '[crio.runtime]\ndefault_runtime = "nonsense"\n' >"$BATS_TEST_TMPDIR/10-bad.conf"
	local dir=$HUSK_TMP/bad
	run ! testnode up --dir "$dir" --cache "$HUSK_CACHE" --crio-conf "$BATS_TEST_TMPDIR/10-bad.conf"
	assert_contains "$output" nonsense
	assert_eq "$(ls "$dir")" log
	[[ -z $(awk -v d="$dir/" 'index($5, d) == 1' /proc/self/mountinfo) ]]
	testnode down --dir "$dir" # nothing to do
}
