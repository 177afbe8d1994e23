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

# ended PID: the process is gone, or a zombie (this machine's init reaps late).
ended() { ! [[ -e /proc/$1 ]] || grep -q '^State:.Z' "/proc/$1/status"; }

# left ID...: what there is of these pods and containers, but for CRI-O's own records: a line each.
left() {
	local id p
	for id in "$@"; do
		find /run/husk "$HUSK_TMP/state" /sys/fs/cgroup /var/lib/cni/results -name "*$id*" 2>/dev/null
		grep -F "$id" /proc/self/mountinfo
		for p in /proc/[0-9]*; do
			if tr '\0' ' ' <"$p/cmdline" 2>/dev/null | grep -qF "$id" && [[ ${p#/proc/} != "$$" ]]; then echo "process ${p#/proc/}"; fi
		done
	done
	find "$NODE_DIR/crio/ns" -type f
	ip -o link show type veth master "$(jq -r .network.bridge "$NODE_DIR/node.json")"
	true
}

nothing_left() { [[ -z $(left "$@") ]]; }

# no_trace ID...: nothing is left of pods and containers that were removed, and of any other on this node.
no_trace() { eventually 20 nothing_left "$@" || fail "left: $(left "$@")"; }

# kills PID...: kills them all at once.
kills() {
	kill -9 "$@"
	local pid
	for pid in "$@"; do eventually 10 ended "$pid"; done
}

# shims POD: the pids of the pod's keeper and of its shim.
shims() { pgrep -f "^husk-keeper .*$1|containerd-shim-husk-v2.*-id $1"; }

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
	no_trace "$pod" "$ctr"
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
	no_trace "$pod" "$ctr"
}

# keeper_and_shim: a pod whose keeper and shim are killed at once, with its container running on. CRI-O's connection is
# gone for good: it cannot stop the pod until it is restarted, and without somebody who answers then it would panic.
# Sets pod, ctr and pid, the container's.
keeper_and_shim() {
	local image pids
	pod=$(run_pod both husk)
	image=$(pull_image "$REF" both)
	ctr=$(run_ctr "$pod" both c "$image=$REF" -- "${SLEEP[@]}")
	pid=$(jq .pid "/run/husk/pods/$pod/containers/$ctr.json")
	mapfile -t pids < <(shims "$pod")
	assert_eq "${#pids[@]}" 2 "a keeper and a shim"
	kills "${pids[@]}"
	kill -0 "$pid" # it runs on, without a parent
	run ! stock stopp "$pod"
}

# goes: the pod can be stopped and removed, and the node works.
goes() {
	local image
	eventually 15 crictl version
	ended "$pid" || fail "the container runs on"
	ctr_exited "$ctr"
	assert_eq "$(ctr_status "$ctr" .exitCode)" 137
	crictl stopp "$pod"
	crictl rmp "$pod"
	no_trace "$pod" "$ctr"
	pod=$(run_pod again husk)
	image=$(pull_image "$REF" again)
	ctr_runs "$(run_ctr "$pod" again c "$image=$REF" -- "${SLEEP[@]}")"
}

@test "kill -9 of the keeper and the shim: a restart of CRI-O is enough" {
	local pod ctr pid
	keeper_and_shim
	crio_restart
	goes
}

@test "kill -9 of the keeper and the shim: the next pod's keeper ends the containers" {
	local pod ctr pid other
	keeper_and_shim
	other=$(run_pod other husk)
	eventually 20 ended "$pid"
	crio_restart --signal KILL
	eventually 15 crictl version
	crictl rmp -f "$other"
	goes
}

@test "kill -9 of the keeper and the shim, and CRI-O has forgotten the pod: the sweep leaves nothing" {
	local pod ctr pid group=/sys/fs/cgroup/pids$CGROUP_PARENT/husk-pull-4194305-1
	keeper_and_shim
	# As a pull of a husk that was killed, whose pid is nobody's.
	[[ -d /sys/fs/cgroup/pids ]] || group=/sys/fs/cgroup$CGROUP_PARENT/husk-pull-4194305-1
	mkdir "$group"
	crio_stop
	rm -rf "$CRIO_RUNROOT"/overlay-containers/{"$pod","$ctr"}/userdata/config.json
	umount "$CRIO_RUNROOT/overlay-containers/$pod/userdata/shm"
	rm -rf "${CRIO_RUNROOT:?}/overlay-containers/"{"$pod","$ctr"}
	"$HUSK_BIN_DIR/containerd-shim-husk-v2" sweep
	eventually 20 ended "$pid"
	eventually 20 test ! -e "/run/husk/pods/$pod"
	[[ ! -e $group ]] || fail "$group is left"
	assert_eq "$(find "$HUSK_TMP/state" -name "$ctr")" "" "what the runtime keeps"
	crio_start
}

@test "everything is gone when the pod is gone" {
	local pod image ctr mounts kind
	mounts=$(grep -cF "$HUSK_TMP" /proc/self/mountinfo)
	pod=$(run_pod app husk)
	image=$(pull_image "$REF" app)
	ctr=$(run_ctr "$pod" app c "$image=$REF" -- "${SLEEP[@]}")
	# The look itself works: of each kind it finds what there is while the pod runs.
	run left "$pod" "$ctr"
	for kind in /run/husk/pods "$HUSK_TMP/state" /sys/fs/cgroup /var/lib/cni "process " "$NODE_DIR/crio/ns" veth; do
		assert_contains "$output" "$kind"
	done
	crictl stop "$ctr"
	crictl rm "$ctr"
	crictl stopp "$pod"
	crictl rmp "$pod"
	no_trace "$pod" "$ctr"
	assert_eq "$(grep -cF "$HUSK_TMP" /proc/self/mountinfo)" "$mounts" mounts
}
