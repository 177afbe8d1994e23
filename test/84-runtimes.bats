#!/usr/bin/env bats
# The OCI runtimes under the shim, by the configuration's `runtime`: each runs the same pods in the same way.

# Each test sets pod, image and ctr for itself.
# shellcheck disable=SC2030,SC2031

load helpers

PASSWD='web:x:1234:1235:web:/home/web:/bin/sh'
GROUP=$'web:x:1235:\nstaff:x:50:web'

setup_file() {
	node_up
	husk_start
	cp "$HUSK_TMP/shim.toml" "$HUSK_TMP/shim.before"
	"$HUSK_BIN_DIR/mkimage" keygen "$HUSK_TMP/keys" >/dev/null
}

teardown_file() {
	nodes_down
}

teardown() {
	show_logs_on_failure
}

# under NAME RUNTIME: pods from now on run under it. Its state is in a directory of its own.
under() {
	{
		grep -v '^runtime' "$HUSK_TMP/shim.before"
		printf 'runtime = "%s"\nruntime_root = "%s"\n' "$2" "$HUSK_TMP/state/$1"
	} >"$HUSK_TMP/shim.toml"
}

# runs_pods NAME: a pod's life, from an encrypted image whose user is a name.
runs_pods() {
	local name=$1 ref pod image ctr shim before
	# shellcheck disable=SC2016
	local ask='echo $(id -u):$(id -g) $(id -G) $HOME'
	before=$(grep -cF "$HUSK_TMP" /proc/self/mountinfo)
	ref=$(push_image "$name:1" --encrypt-key "$HUSK_TMP/keys/public.pem" --user web --passwd "$PASSWD" --group "$GROUP" \
		--stop-signal SIGUSR1 --layer /secret=sealed)
	pod=$(run_pod "$name" husk)
	image=$(pull_image "$ref" "$name")
	ctr=$(run_ctr "$pod" "$name" c "$image=$ref" -- \
		/bin/sh -c "$ask; cat /secret; echo; trap 'echo usr1; exit 7' USR1; while :; do sleep 0.1; done")
	ctr_runs "$ctr"
	# It is this runtime that runs it, and no other.
	assert_contains "$(ls "$HUSK_TMP/state/$name/default")" "$ctr"
	eventually 10 logged "$ctr" sealed
	assert_eq "$(crictl logs "$ctr")" "1234:1235 1235 50 /home/web"$'\n'sealed log
	assert_eq "$(crictl exec -s "$ctr" sh -c "$ask")" "1234:1235 1235 50 /home/web" "exec sync"
	assert_eq "$(crictl exec "$ctr" sh -c "$ask")" "1234:1235 1235 50 /home/web" exec
	assert_eq "$(echo piped | crictl exec -i "$ctr" cat)" piped
	assert_contains "$(crictl exec -t "$ctr" sh -c 'test -t 0 && echo a terminal')" "a terminal"
	run -3 crictl exec -s "$ctr" sh -c 'exit 3'
	run ! crictl exec -s "$ctr" touch /etc/passwd/x
	crictl stats -o json "$ctr" | jq -e '.stats[0] | (.memory.workingSetBytes.value | tonumber) > 0 and
		(.cpu.usageCoreNanoSeconds.value | tonumber) > 0' >/dev/null
	crictl stop -t 20 "$ctr"
	ctr_exited "$ctr"
	assert_eq "$(ctr_status "$ctr" .exitCode)" 7 "exit code"
	eventually 10 logged "$ctr" usr1
	crictl rm "$ctr"
	# One that does not listen is killed.
	ctr=$(run_ctr "$pod" "$name" d "$image=$ref" -- /bin/sh -c 'trap "" USR1; while :; do sleep 0.1; done')
	crictl stop -t 1 "$ctr"
	assert_eq "$(ctr_status "$ctr" .exitCode)" 137 "exit code when killed"
	shim=$(pgrep -f "containerd-shim-husk-v2.*$pod" | head -1)
	crictl rmp -f "$pod"
	eventually 20 test ! -e "/proc/$shim/exe"
	assert_eq "$(ls -A "$HUSK_TMP/state/$name/default")" "" "what the runtime keeps"
	assert_eq "$(grep -cF "$HUSK_TMP" /proc/self/mountinfo)" "$before" mounts
	assert_eq "$(find /sys/fs/cgroup -path "*$CGROUP_PARENT/*$pod*")" "" cgroups
}

logged() { [[ $(crictl logs "$1") == *"$2"* ]]; }

@test "runc" {
	under runc runc
	runs_pods runc
}

# crun_here prints the crun to use. crun 1.8 refuses a machine with both hierarchies whose v2 has controllers, as this
# one may have: there it runs without sight of v2.
crun_here() {
	local v2=/sys/fs/cgroup/unified
	if ! grep -qs . "$v2/cgroup.controllers"; then
		echo crun
		return
	fi
	cat >"$HUSK_TMP/crun" <<-SH
		#!/bin/sh
		exec unshare --mount sh -c 'umount $v2 && exec crun "\$@"' crun "\$@"
	SH
	chmod +x "$HUSK_TMP/crun"
	echo "$HUSK_TMP/crun"
}

@test "crun" {
	under crun "$(crun_here)"
	runs_pods crun
}

# gVisor is in no Debian package: whoever wants this test names a runsc, and its flags where the machine needs them.
@test "runsc, which HUSK_RUNSC names" {
	[[ -n ${HUSK_RUNSC:-} ]] || skip "NOT RUN: runsc is not installed by make deps; HUSK_RUNSC=/path/to/runsc runs it"
	under runsc "$HUSK_RUNSC"
	runs_pods runsc
}

@test "two pods under two runtimes, changed while the first runs" {
	local ref one image two
	ref=$(push_image both:1 --layer /a=1)
	under runc runc
	one=$(run_pod one husk)
	under crun "$(crun_here)"
	two=$(run_pod two husk)
	image=$(pull_image "$ref" two)
	ctr_runs "$(run_ctr "$two" two c "$image=$ref" -- "${SLEEP[@]}")"
	# The end of a pod is its own runtime's, whatever the configuration says by then.
	crictl rmp -f "$one" "$two"
	assert_eq "$(find "$HUSK_TMP/state/runc/default" "$HUSK_TMP/state/crun/default" -mindepth 1)" "" "what the runtimes keep"
}

@test "a runtime that is not there: the pod is refused with its name" {
	under none no-such-runtime
	run ! run_pod missing husk
	assert_contains "$output" no-such-runtime
}

@test "features: what the configured runtime says, and CRI-O reports it" {
	local shim=$HUSK_BIN_DIR/containerd-shim-husk-v2
	if [[ -e /etc/husk/shim.toml ]]; then skip "NOT RUN: /etc/husk/shim.toml is somebody's"; fi
	assert_eq "$("$shim" features | jq -S .)" "$(runc features | jq -S .)" "features without a configuration"
	# CRI-O asked when it started, and has no complaint.
	run grep -F "containerd-shim-husk-v2" "$NODE_DIR/log/crio.log"
	assert_contains "$output" "Using runtime handler containerd-shim-husk-v2"
	refute_contains "$output" "features failed"
	run ! grep -F 'OCI features for runtime handler \"husk\"' "$NODE_DIR/log/crio.log"
	# runc's own handler and husk's can do the same.
	assert_eq "$(crictl info | jq -c '[.runtimeHandlers[] | select(.name == "husk") | .features]')" \
		"$(crictl info | jq -c '[.runtimeHandlers[] | select(.name == "runc") | .features]')" "what kubelet is told"
}
