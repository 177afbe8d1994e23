#!/usr/bin/env bats
# What only a real node shows of the sandbox side: many layers, terminals, volumes, limits, a hostile pod, and what
# happens when the keeper or the kernel's OOM killer strikes.

# Each test sets pod, image and ctr for itself.
# shellcheck disable=SC2030,SC2031

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
	umount -l "$HUSK_TMP/volume/pod" "$HUSK_TMP/volume" 2>/dev/null || true # of a failed test
}

# pod_with NAME REFERENCE [JQ [-- COMMAND...]]: a pod of one container; sets pod, image and ctr.
pod_with() {
	local name=$1 ref=$2
	shift 2
	pod=$(run_pod "$name" husk)
	image=$(pull_image "$ref" "$name")
	ctr=$(run_ctr "$pod" "$name" c "$image=$ref" "$@")
}

@test "images of 60 and 120 layers" {
	local n i args
	for n in 60 120; do
		args=()
		for i in $(seq $((n - 1))); do args+=(--layer "/l$i=$i"); done
		pod_with "layers$n" "$(push_image "layers:$n" "${args[@]}" --layer-random 1KiB)" -- "${SLEEP[@]}"
		assert_eq "$(crictl exec -s "$ctr" cat /l1 "/l$((n - 1))")" "1$((n - 1))"
		crictl rmp -f "$pod"
	done
}

@test "exec with a terminal, and with standard input" {
	pod_with tty "$(push_image tty:1 --layer /a=1)" -- "${SLEEP[@]}"
	assert_contains "$(crictl exec -t "$ctr" tty)" /dev/pts/
	assert_eq "$(echo from outside | crictl exec -i "$ctr" cat)" "from outside"
	run ! crictl exec "$ctr" sh -c 'exit 7'
	crictl rmp -f "$pod"
}

@test "a volume that is mounted later reaches the container" {
	local dir=$HUSK_TMP/volume
	# As kubelet's directory is on a host with systemd: shared.
	mkdir -p "$dir/pod"
	mount --bind "$dir" "$dir"
	mount --make-shared "$dir"
	pod=$(run_pod volume husk)
	mount -t tmpfs late "$dir/pod"
	echo late >"$dir/pod/file"
	local ref
	ref=$(push_image volume:1 --layer /a=1)
	image=$(pull_image "$ref" volume)
	ctr=$(run_ctr "$pod" volume c "$image=$ref" ".mounts = [{container_path: \"/v\", host_path: \"$dir/pod\"}]" -- "${SLEEP[@]}")
	run -0 crictl exec -s "$ctr" cat /v/file
	crictl rmp -f "$pod"
	umount "$dir/pod" "$dir"
	assert_eq "$output" late
}

@test "a read-only root file system" {
	pod_with ro "$(push_image ro:1 --layer /a=1)" '.linux.security_context.readonly_rootfs = true' -- "${SLEEP[@]}"
	run ! crictl exec -s "$ctr" touch /a
	assert_contains "$output" "Read-only"
	crictl rmp -f "$pod"
}

@test "resource limits, and an OOM kill is reported" {
	# shellcheck disable=SC2016
	pod_with oom "$(push_image oom:1 --layer /a=1)" '.linux.resources = {memory_limit_in_bytes: 33554432}' -- \
		/bin/sh -c 'x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done'
	eventually 30 ctr_exited "$ctr"
	assert_eq "$(ctr_status "$ctr" .reason)" OOMKilled
	crictl rmp -f "$pod"
}

@test "a pull that the pod's memory does not hold is refused with a reason, and leaves room" {
	local group=/sys/fs/cgroup/memory$CGROUP_PARENT/small limit=memory.limit_in_bytes ref
	if [[ ! -d /sys/fs/cgroup/memory ]]; then
		group=/sys/fs/cgroup$CGROUP_PARENT/small limit=memory.max
	fi
	ref=$(push_image small:1 --layer-random 96MiB)
	pod=$(run_pod small husk ".linux.cgroup_parent = \"$CGROUP_PARENT/small\"")
	echo 67108864 >"$group/$limit"
	# Half of the limit is the store's: nothing is fetched of what cannot fit.
	run ! pull_image "$ref" small
	assert_contains "$output" "the store has room for"
	# A store as large as the limit holds the layers, but not the pull beside them.
	ref=$(push_image small:2 --layer-random 58MiB)
	sed -i '/^store_size/d' "$HUSK_TMP/shim.toml"
	echo 'store_size = "1g"' >>"$HUSK_TMP/shim.toml"
	crictl rmp -f "$pod"
	pod=$(run_pod small husk ".linux.cgroup_parent = \"$CGROUP_PARENT/small\"")
	echo 67108864 >"$group/$limit"
	run ! pull_image "$ref" small
	sed -i '/^store_size/d' "$HUSK_TMP/shim.toml"
	assert_contains "$output" "memory limit of the pod"
	# What was half unpacked does not stay the pod's.
	ref=$(push_image small:3 --layer /a=1)
	image=$(pull_image "$ref" small)
	ctr=$(run_ctr "$pod" small d "$image=$ref" -- "${SLEEP[@]}")
	ctr_runs "$ctr"
	crictl rmp -f "$pod"
}

@test "an error with a percent sign arrives as it was" {
	local ref
	ref=$(push_image percent:1 --layer /a=1)
	pod=$(run_pod percent husk)
	image=$(pull_image "$ref" percent)
	run ! create_ctr "$pod" percent c "$image=$ref" '.linux.security_context += {run_as_username: "100%d"}' -- "${SLEEP[@]}"
	assert_contains "$output" "100%d"
	refute_contains "$output" MISSING
	crictl rmp -f "$pod"
}

@test "a pod that claims another pod's ID by an annotation is refused, by the shim too" {
	local file
	pod_with victim "$(push_image victim:1 --layer /a=1)" -- "${SLEEP[@]}"
	file=$(pod_json forger ".annotations = {\"io.kubernetes.cri-o.SandboxID\": \"$pod\"}")
	run ! crictl runp -r husk "$file"
	run ! stock runp -r husk "$file" # CRI-O writes the pod's annotations over its own
	assert_contains "$output" "not its own ID"
	ctr_runs "$ctr"
	crictl rmp -f "$pod"
}

@test "kill -9 of the keeper: the pod runs on, and goes once CRI-O has been restarted" {
	pod_with keeper "$(push_image keeper:1 --layer /a=1)" -- "${SLEEP[@]}"
	kill -9 "$(pgrep -f "^husk-keeper .*$pod")"
	crio_restart
	eventually 15 crictl version
	ctr_runs "$ctr"
	assert_eq "$(crictl exec -s "$ctr" cat /a)" 1
	eventually 60 crictl rmp -f "$pod"
	eventually 20 test ! -e "/run/husk/pods/$pod"
}
