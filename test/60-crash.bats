#!/usr/bin/env bats
# Whatever is killed, what follows works and nothing is left half made.

load helpers

setup() {
	node_up
	husk_start
	REF=$(push_image app:1 --layer /a=1 --layer-random 4MiB)
}

teardown() {
	show_logs_on_failure
	nodes_down
}

# no_shim POD: none of the pod's shim processes is left.
no_shim() { ! pgrep -f "containerd-shim-husk-v2.*$1" >/dev/null; }

# ended PID: the process is gone, or a zombie (this machine's init reaps late).
ended() { ! [[ -e /proc/$1 ]] || grep -q '^State:.Z' "/proc/$1/status"; }

# no_cgroup NAME: no cgroup of this node has the name in its path.
no_cgroup() { [[ -z $(find /sys/fs/cgroup -path "*$CGROUP_PARENT/*$1*" -type d 2>/dev/null) ]]; }

# no_half_records: every record is whole, for husk and for CRI-O.
no_half_records() {
	stock images -o json >/dev/null || fail "stock CRI-O cannot list images"
	local id
	for id in $("$HUSK_BIN_DIR/husk" --config "$HUSK_TMP/husk.toml" images --format json | jq -r '.[].storage_id'); do
		[[ -s $CRIO_ROOT/overlay-images/$id/manifest ]] || fail "record $id has no manifest"
	done
}

@test "kill -9 of husk in the middle of pulls, many times" {
	local i pid
	for i in $(seq 12); do
		push_image "many:$i" --layer "/n=$i" >/dev/null
	done
	for i in $(seq 12); do
		pull_image "$REGISTRY/many:$i" --runtime-handler husk >/dev/null 2>&1 &
		pid=$!
		sleep "0.0$((RANDOM % 9))"
		husk_stop KILL
		wait "$pid" || true
		husk_start
		no_half_records
	done
	for i in $(seq 12); do
		pull_image "$REGISTRY/many:$i" --runtime-handler husk
	done
	no_half_records
	assert_eq "$("$HUSK_BIN_DIR/husk" --config "$HUSK_TMP/husk.toml" images --format json | jq length)" 12
}

@test "kill -9 of husk between pull and create, and while the container runs" {
	local pod image ctr ref
	pod=$(run_pod app husk)
	image=$(pull_image "$REF" app)
	husk_stop KILL
	husk_start
	ctr=$(run_ctr "$pod" app c "$image=$REF" -- "${SLEEP[@]}")
	ref=$(ctr_status "$ctr" .imageRef)
	husk_stop KILL
	husk_start
	ctr_runs "$ctr"
	assert_eq "$(ctr_status "$ctr" .imageRef)" "$ref" "image_ref after husk's restart"
	assert_eq "$(crictl exec -s "$ctr" echo alive)" alive
}

@test "kill -9 of the shim: the pod cleans up" {
	local pod image ctr shim
	pod=$(run_pod app husk)
	image=$(pull_image "$REF" app)
	ctr=$(run_ctr "$pod" app c "$image=$REF" -- "${SLEEP[@]}")
	shim=$(pgrep -f "containerd-shim-husk-v2.*$pod" | head -1)
	kill -9 "$shim"
	eventually 30 ended "$shim"
	eventually 60 crictl stopp "$pod"
	eventually 60 crictl rmp -f "$pod"
	assert_eq "$(crictl pods -q)" ""
	eventually 20 no_shim "$pod"
	assert_eq "$(grep -c "$ctr" /proc/self/mountinfo || true)" 0 "mounts"
	eventually 20 no_cgroup "$ctr"
	# and the next pod runs
	pod=$(run_pod again husk)
	image=$(pull_image "$REF" again)
	ctr=$(run_ctr "$pod" again c "$image=$REF" -- "${SLEEP[@]}")
	ctr_runs "$ctr"
}

@test "CRI-O restarted and killed: pods run on, status stays true" {
	local pod image ctr ref signal
	pod=$(run_pod app husk)
	image=$(pull_image "$REF" app)
	ctr=$(run_ctr "$pod" app c "$image=$REF" -- "${SLEEP[@]}")
	ref=$(ctr_status "$ctr" .imageRef)
	for signal in TERM KILL; do
		crio_stop --signal "$signal"
		run ! crictl version # husk says so, and stays
		assert_contains "$output" Unavailable
		crio_start
		eventually 15 crictl version
		ctr_runs "$ctr"
		assert_eq "$(ctr_status "$ctr" .imageRef)" "$ref" "image_ref"
		assert_eq "$(ctr_status "$ctr" .imageId)" "$image" "image_id"
		assert_eq "$(crictl exec -s "$ctr" echo alive)" alive
	done
	# A container that ends now is seen to end, and the pod goes.
	crictl stop "$ctr"
	ctr_exited "$ctr"
	crictl rmp -f "$pod"
	assert_eq "$(crictl pods -q)" ""
}

@test "everything is gone when the pod is gone" {
	local pod image ctr mounts
	mounts=$(wc -l </proc/self/mountinfo)
	pod=$(run_pod app husk)
	image=$(pull_image "$REF" app)
	ctr=$(run_ctr "$pod" app c "$image=$REF" -- "${SLEEP[@]}")
	crictl stop "$ctr"
	crictl rm "$ctr"
	crictl stopp "$pod"
	crictl rmp "$pod"
	eventually 20 no_shim "$pod"
	assert_eq "$(wc -l </proc/self/mountinfo)" "$mounts" mounts
	[[ -z $(find /run/husk "$HUSK_TMP/state" -name "*$pod*" 2>/dev/null) ]]
	[[ -z $(find /run/husk "$HUSK_TMP/state" -name "*$ctr*" 2>/dev/null) ]]
}
