#!/usr/bin/env bats
# The task service of a pod's shim: each call, by CRI-O where CRI-O makes it, else at the pod's own socket.

# Each test sets pod, image and ctr for itself, and much is for the container's shell.
# shellcheck disable=SC2016,SC2030,SC2031

load helpers

setup_file() {
	node_up
	husk_start
	REF=$(push_image task:1 --layer /a=1)
	export REF
}

teardown_file() {
	nodes_down
}

teardown() {
	show_logs_on_failure
	[[ -n ${BATS_TEST_COMPLETED:-} || -z ${pod:-} ]] || cri rmp -f "$pod" || true
}

# pod_with NAME [JQ [-- COMMAND...]]: a pod of one container; sets pod, image and ctr.
pod_with() {
	local name=$1
	shift
	pod=$(run_pod "$name" husk)
	image=$(pull_image "$REF" "$name")
	ctr=$(run_ctr "$pod" "$name" c "$image=$REF" "$@")
}

# task METHOD [JQ]: calls the shim of $pod for the container $ctr, with a request that is {id} changed by jq.
task() {
	"$HUSK_BIN_DIR/taskcall" "/run/husk/pods/$pod/shim.sock" "$1" "$(jq -nc --arg id "$ctr" "{id: \$id} | ${2:-.}")"
}

# group CONTROLLER: the container's cgroup.
group() {
	local dir
	for dir in "/sys/fs/cgroup/$1$CGROUP_PARENT/crio-$ctr" "/sys/fs/cgroup$CGROUP_PARENT/crio-$ctr"; do
		[[ ! -d $dir ]] || { echo "$dir" && return; }
	done
	fail "no $1 cgroup of $ctr"
}

# limit CONTROLLER V1-FILE V2-FILE: what is in a file of the container's cgroup.
limit() {
	local dir
	dir=$(group "$1") || return 1
	cat "$dir/$2" 2>/dev/null || cat "$dir/$3"
}

logged() { [[ $(crictl logs "$ctr") == *"$1"* ]]; }

# terminal FILE [TYPED]: runs a script on a terminal of its own, where somebody types that and does not leave: the end
# of input would detach (CRI-O's cio.Attach).
terminal() {
	local keys=$HUSK_TMP/tmp/keys
	[[ -p $keys ]] || mkfifo "$keys"
	exec 4<>"$keys"
	[[ -z ${2:-} ]] || echo "$2" >&4
	timeout 60 script -qec "bash $1" /dev/null <&4
}

@test "exec on a terminal: its size, and each change of it, arrive" {
	local crictl="$HUSK_BIN_DIR/crictl -r unix://$CRI_SOCK -t 60s"
	pod_with tty -- "${SLEEP[@]}"
	cat >"$HUSK_TMP/tmp/sizes" <<-SH
		size() { until [ "\$(stty size)" = "\$1" ]; do sleep 0.1; done; echo "is \$1"; }
		size "43 132"; touch /first; size "17 99"
	SH
	cat >"$HUSK_TMP/tmp/terminal" <<-SH
		stty rows 43 cols 132
		t=\$(tty)
		{ until $crictl exec -s $ctr test -e /first; do sleep 0.1; done; stty -F "\$t" rows 17 cols 99; } >/dev/null 2>&1 &
		timeout --foreground 30 $crictl exec -it $ctr sh -c "\$(cat $HUSK_TMP/tmp/sizes)"
	SH
	run -0 terminal "$HUSK_TMP/tmp/terminal"
	assert_contains "$output" "is 43 132"
	assert_contains "$output" "is 17 99"
	crictl rmp -f "$pod"
}

@test "a container with a terminal: its log, attach, and its size" {
	local crictl="$HUSK_BIN_DIR/crictl -r unix://$CRI_SOCK -t 60s"
	cat >"$HUSK_TMP/tmp/sizes" <<-'SH'
		tty; until [ "$(stty size)" = "43 132" ]; do sleep 0.1; done; echo sized; read -r x; echo "got $x"
	SH
	pod_with term '.tty = true | .stdin = true | .stdin_once = true' -- /bin/sh -c "$(cat "$HUSK_TMP/tmp/sizes")"
	eventually 10 logged /dev/pts/0
	echo "stty rows 43 cols 132; timeout --foreground 30 $crictl attach -it $ctr" >"$HUSK_TMP/tmp/terminal"
	# What is typed waits in the terminal until the container reads it.
	run -0 terminal "$HUSK_TMP/tmp/terminal" typed
	assert_contains "$output" sized
	assert_contains "$output" "got typed"
	eventually 10 ctr_exited "$ctr"
	assert_contains "$(crictl logs "$ctr")" "got typed"
	crictl rmp -f "$pod"
}

@test "attach: what is typed arrives, its end is the end of standard input, output comes back" {
	pod_with attach '.stdin = true | .stdin_once = true' -- /bin/sh -c 'while read -r x; do echo "got $x"; echo "err $x" >&2; done; echo end; exit 3'
	run --separate-stderr crictl attach -i "$ctr" <<<$'one\ntwo'
	assert_contains "$output" $'got one\ngot two'
	# shellcheck disable=SC2154 # set by run
	assert_contains "$stderr" "err two"
	eventually 10 ctr_exited "$ctr"
	assert_eq "$(ctr_status "$ctr" .exitCode)" 3
	assert_contains "$(crictl logs "$ctr")" end
	crictl rmp -f "$pod"
}

@test "standard input that stays open for the next one who attaches" {
	pod_with again '.stdin = true' -- /bin/sh -c 'while read -r x; do echo "got $x"; done; echo end'
	echo one | timeout 2 "$HUSK_BIN_DIR/crictl" -r "unix://$CRI_SOCK" attach -i "$ctr" || true
	eventually 10 logged "got one"
	echo two | timeout 2 "$HUSK_BIN_DIR/crictl" -r "unix://$CRI_SOCK" attach -i "$ctr" || true
	eventually 10 logged "got two"
	ctr_runs "$ctr"
	refute_contains "$(crictl logs "$ctr")" end
	crictl stop -t 1 "$ctr"
	crictl rmp -f "$pod"
}

@test "an exec that takes too long is killed, and nothing of it stays" {
	pod_with slow -- "${SLEEP[@]}"
	run ! crictl exec -s --timeout 1 "$ctr" sleep 4321
	eventually 5 bash -c '! pgrep -fx "sleep 4321"'
	assert_eq "$(task Pids | jq '[.processes[] | select(.info != null)] | length')" 0 "execs left"
	ctr_runs "$ctr"
	crictl rmp -f "$pod"
}

@test "pause and resume: nothing runs in between, and a paused container can be stopped" {
	pod_with pause -- /bin/sh -c 'trap "exit 5" TERM; while :; do echo tick; sleep 0.1; done'
	eventually 10 logged tick
	curl -sf --unix-socket "$FRONT_SOCK" "http://crio/pause/$ctr"
	local before
	before=$(crictl logs "$ctr" | wc -l)
	assert_contains "$(limit freezer freezer.state cgroup.events | tr 1 F)" F
	assert_eq "$(task State | jq -r .status)" PAUSED
	sleep 1 # time in which it would tick
	assert_eq "$(crictl logs "$ctr" | wc -l)" "$before" "ticks while paused"
	curl -sf --unix-socket "$FRONT_SOCK" "http://crio/unpause/$ctr"
	assert_eq "$(task State | jq -r .status)" RUNNING
	ticks() { (($(crictl logs "$ctr" | wc -l) > before)); }
	eventually 10 ticks
	curl -sf --unix-socket "$FRONT_SOCK" "http://crio/pause/$ctr"
	crictl stop -t 10 "$ctr"
	ctr_exited "$ctr"
	crictl rmp -f "$pod"
}

@test "checkpoint: refused by CRI-O and by the shim, and the container runs on" {
	pod_with checkpoint -- "${SLEEP[@]}"
	run ! cri checkpoint --export "$HUSK_TMP/tmp/checkpoint.tar" "$ctr"
	assert_contains "$output" "checkpoint"
	run ! task Checkpoint ". + {path: \"$HUSK_TMP/tmp/checkpoint\"}"
	assert_contains "$output" "Unimplemented: checkpoint container $ctr"
	[[ ! -e $HUSK_TMP/tmp/checkpoint && ! -e $HUSK_TMP/tmp/checkpoint.tar ]]
	ctr_runs "$ctr"
	crictl rmp -f "$pod"
}

@test "new resource limits are the kernel's" {
	pod_with update '.linux.resources = {memory_limit_in_bytes: 67108864}' -- "${SLEEP[@]}"
	assert_eq "$(limit memory memory.limit_in_bytes memory.max)" 67108864 "limit from the start"
	cri update --memory 134217728 --cpu-quota 25000 --cpu-period 50000 --cpu-share 512 "$ctr"
	assert_eq "$(limit memory memory.limit_in_bytes memory.max)" 134217728 memory
	assert_contains "$(limit cpu cpu.cfs_quota_us cpu.max)" 25000
	assert_contains "$(limit cpu cpu.cfs_period_us cpu.max)" 50000
	assert_eq "$(ctr_status "$ctr" .resources.linux.memoryLimitInBytes)" 134217728 "what CRI-O reports"
	run ! cri update --memory 4096 "$ctr" # less than it uses, and than the least
	assert_eq "$(limit memory memory.limit_in_bytes memory.max)" 134217728 "after a refused update"
	ctr_runs "$ctr"
	crictl rmp -f "$pod"
}

@test "stats are true: memory, processor time and processes" {
	local stats before after rss cpu
	# dd holds 64 MiB that it cannot get rid of.
	pod_with stats '.linux.resources = {memory_limit_in_bytes: 268435456}' -- \
		/bin/sh -c 'dd if=/dev/zero bs=64M count=1 | sleep 1000 & i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; echo burnt; wait'
	eventually 30 logged burnt
	eventually 20 holds_memory 67108864
	before=$(used cpuacct cpuacct.usage)
	stats=$(crictl stats -o json "$ctr" | jq '.stats[0]')
	after=$(used cpuacct cpuacct.usage)
	rss=$(jq -r '.memory.rssBytes.value' <<<"$stats")
	((rss >= 67108864 && rss < 67108864 + 8388608)) || fail "rss is $rss"
	rss=$(jq -r '.memory.workingSetBytes.value' <<<"$stats")
	((rss >= 67108864 && rss < 67108864 + 16777216)) || fail "working set is $rss"
	jq -e '(.memory.availableBytes.value | tonumber) + (.memory.workingSetBytes.value | tonumber) == 268435456' <<<"$stats" >/dev/null
	cpu=$(jq -r '.cpu.usageCoreNanoSeconds.value' <<<"$stats")
	((before <= cpu && cpu <= after && cpu > 0)) || fail "processor time $cpu is not within $before and $after"
	# The shim's own words.
	stats=$(task Stats | jq .stats)
	assert_contains "$(jq -r '.["@type"]' <<<"$stats")" io.containerd.cgroups.v
	assert_eq "$(jq -r '.pids.current' <<<"$stats")" "$(cat "$(group pids)/pids.current")" processes
	crictl stop -t 1 "$ctr"
	crictl rmp -f "$pod"
}

# used CONTROLLER FILE: of cgroup v1, or v2's cpu.stat.
used() {
	local dir
	dir=$(group "$1") || return 1
	cat "$dir/$2" 2>/dev/null || awk '$1 == "usage_usec" {print $2 * 1000}' "$dir/cpu.stat"
}

holds_memory() {
	(($(limit memory memory.usage_in_bytes memory.current) >= $1))
}

@test "state, pids, connect, wait" {
	local shim init exec
	pod_with calls -- /bin/sh -c 'trap "exit 9" TERM; while :; do sleep 0.1; done'
	shim=$(pgrep -f "containerd-shim-husk-v2.*-id $pod")
	init=$(task State | jq .pid)
	assert_eq "$(task Connect | jq -c '[.shimPid, .taskPid]')" "[$shim,$init]" connect
	crictl exec -s "$ctr" sleep 4322 &
	exec=$!
	execs() { task Pids | jq -e '[.processes[] | select(.info != null)] | length == 1' >/dev/null; }
	eventually 10 execs
	task Pids | jq -e --argjson init "$init" 'any(.processes[]; .pid == $init)' >/dev/null
	task Wait >"$HUSK_TMP/tmp/wait" &
	crictl stop -t 10 "$ctr"
	wait "$!"
	assert_eq "$(jq .exitStatus "$HUSK_TMP/tmp/wait")" 9 wait
	wait "$exec" || true
	assert_eq "$(task State | jq -c '[.status, .exitStatus]')" '["STOPPED",9]'
	assert_eq "$(task Kill '. + {signal: 15}')" "{}" "kill of what has exited"
	run ! task Kill '. + {signal: 0}'
	assert_contains "$output" NotFound
	crictl rmp -f "$pod"
}

@test "kill: one process, and all of them" {
	# Without a pid namespace of its own the others live on after the first.
	pod_with kill '.linux.security_context.namespace_options.pid = 2' -- /bin/sh -c 'sleep 4323 & trap "echo hup" HUP; while :; do sleep 0.1; done'
	task Kill '. + {signal: 1}'
	eventually 10 logged hup
	task Kill '. + {signal: 9, all: true}'
	eventually 10 ctr_exited "$ctr"
	assert_eq "$(ctr_status "$ctr" .exitCode)" 137
	eventually 5 bash -c '! pgrep -fx "sleep 4323"'
	crictl rmp -f "$pod"
}

@test "shutdown with containers left does nothing, delete of what runs is refused, of what is not there succeeds" {
	local shim
	pod_with end -- "${SLEEP[@]}"
	shim=$(pgrep -f "containerd-shim-husk-v2.*-id $pod")
	task Shutdown '. + {now: true}'
	run ! task Delete
	ctr_runs "$ctr"
	assert_eq "$(crictl exec -s "$ctr" cat /a)" 1
	"$HUSK_BIN_DIR/taskcall" "/run/husk/pods/$pod/shim.sock" Delete '{"id": "nobody"}' >/dev/null
	run ! "$HUSK_BIN_DIR/taskcall" "/run/husk/pods/$pod/shim.sock" State '{"id": "nobody"}'
	assert_contains "$output" NotFound
	kill -0 "$shim"
	crictl rmp -f "$pod"
	eventually 10 test ! -e "/proc/$shim/exe"
}
