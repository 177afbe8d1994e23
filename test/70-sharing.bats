#!/usr/bin/env bats
# Pulls at once, and layers that are fetched once.

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

@test "two pods pull the same image at once" {
	local ref a b image_a image_b ctr_a ctr_b layers mark
	ref=$(push_image both:1 --layer /a=1 --layer-random 8MiB)
	mapfile -t layers < <(layer_digests "$ref")
	mark=$(log_mark)
	a=$(run_pod a husk)
	b=$(run_pod b husk)
	pull_image "$ref" a >"$BATS_TEST_TMPDIR/a" &
	pull_image "$ref" b >"$BATS_TEST_TMPDIR/b"
	wait $!
	image_a=$(<"$BATS_TEST_TMPDIR/a")
	image_b=$(<"$BATS_TEST_TMPDIR/b")
	assert_eq "$image_a" "$image_b"
	assert_eq "$("$HUSK_BIN_DIR/husk" --config "$HUSK_TMP/husk.toml" images --format json | jq --arg r "$ref" '[.[] | select(any(.references[]; .reference == $r))] | length')" 1
	run_ctr "$a" a c "$image_a=$ref" -- "${SLEEP[@]}" >"$BATS_TEST_TMPDIR/ctr-a" &
	ctr_b=$(run_ctr "$b" b c "$image_b=$ref" -- "${SLEEP[@]}")
	wait $!
	ctr_a=$(<"$BATS_TEST_TMPDIR/ctr-a")
	assert_eq "$(crictl exec -s "$ctr_a" cat /a)" 1
	assert_eq "$(crictl exec -s "$ctr_b" cat /a)" 1
	# Each pod fetched the layers itself; tenants share nothing.
	assert_eq "$(blob_requests "$mark" "$(pod_ip "$a")" "${layers[@]}")" "${#layers[@]}"
	assert_eq "$(blob_requests "$mark" "$(pod_ip "$b")" "${layers[@]}")" "${#layers[@]}"
	assert_eq "$(blob_requests "$mark" "$NODE_IP" "${layers[@]}")" 0
	crictl rmp -f "$a" "$b"
}

@test "two containers of one image in a pod, started at once: layers fetched once, roots apart" {
	local ref pod image one two three layers
	ref=$(push_image shared:1 --layer /a=1 --layer-random 8MiB)
	pod=$(run_pod shared husk)
	image=$(pull_image "$ref" shared)
	run_ctr "$pod" shared one "$image=$ref" -- "${SLEEP[@]}" >"$BATS_TEST_TMPDIR/one" &
	two=$(run_ctr "$pod" shared two "$image=$ref" -- "${SLEEP[@]}")
	wait $!
	one=$(<"$BATS_TEST_TMPDIR/one")
	crictl exec -s "$one" sh -c 'echo mine >/a'
	assert_eq "$(crictl exec -s "$one" cat /a)" mine
	assert_eq "$(crictl exec -s "$two" cat /a)" 1
	# a restart of a container fetches nothing
	crictl stop "$two"
	crictl rm "$two"
	three=$(run_ctr "$pod" shared three "$image=$ref" -- "${SLEEP[@]}")
	assert_eq "$(crictl exec -s "$three" cat /a)" 1
	mapfile -t layers < <(layer_digests "$ref")
	assert_eq "$(blob_requests 0 "$(pod_ip "$pod")" "${layers[@]}")" "${#layers[@]}"
	crictl rmp -f "$pod"
}

@test "exec, attach, logs, stats, stop with the image's signal, exit code" {
	local ref pod image ctr
	ref=$(push_image life:1 --stop-signal SIGUSR1 --layer /a=1)
	pod=$(run_pod life husk)
	image=$(pull_image "$ref" life)
	ctr=$(run_ctr "$pod" life c "$image=$ref" -- /bin/sh -c 'echo up; trap "echo usr1; exit 7" USR1; while :; do sleep 0.1; done')
	eventually 10 bash -c "[[ \$('$HUSK_BIN_DIR/crictl' -r unix://$CRI_SOCK logs $ctr) == up ]]"
	assert_eq "$(echo piped | crictl exec -i "$ctr" cat)" piped
	run -3 crictl exec -s "$ctr" sh -c 'exit 3'
	crictl stats -o json "$ctr" | jq -e '.stats[0].memory.usageBytes.value // .stats[0].memory.workingSetBytes.value | tonumber > 0'
	crictl stop -t 20 "$ctr"
	ctr_exited "$ctr"
	assert_eq "$(ctr_status "$ctr" .exitCode)" 7
	assert_contains "$(crictl logs "$ctr")" usr1
	crictl rmp -f "$pod"
}
