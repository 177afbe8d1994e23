#!/usr/bin/env bats
# Husk is restarted, replaced and upgraded under a client that asks 50 times per second, and the client notices nothing.

load helpers

readonly RESTARTS=10

setup_file() {
	node_up
	PINGER=$HUSK_BIN_DIR/pinger
	if [[ ! -x $PINGER ]]; then
		PINGER=$BATS_FILE_TMPDIR/pinger
		CGO_ENABLED=0 go -C "$HUSK_ROOT" build -tags "containers_image_openpgp exclude_graphdriver_btrfs" \
			-o "$PINGER" ./test/internal/pinger
	fi
	REF=$(push_image app:1 --layer /a=1)
	export PINGER REF
}

setup() {
	husk_start
	pull_image "$REF" --runtime-handler husk
	CURRENT=husk
}

teardown() {
	show_logs_on_failure
	local pid
	for pid in ${LOAD_PID:-} ${KEEP_PID:-}; do kill "$pid" 2>/dev/null || true; done
	testnode stop --dir "$NODE_DIR" "$CURRENT"
}

teardown_file() { nodes_down; }

# load_start [FLAG...]: starts asking; load_stop ends it, and the sum is in $HUSK_TMP/load.json.
load_start() {
	"$PINGER" load --socket "$FRONT_SOCK" --image "$REF" "$@" >"$HUSK_TMP/load.json" 3>&- &
	LOAD_PID=$!
}

load_stop() {
	kill "$LOAD_PID"
	wait "$LOAD_PID" || fail "the load did not end well"
	LOAD_PID=
	cat "$HUSK_TMP/load.json"
}

# load_is JQ: the sum of the load.
load_is() { jq -e "$1" "$HUSK_TMP/load.json" >/dev/null || fail "not $1: $(cat "$HUSK_TMP/load.json")"; }

gone() { ! [[ -e /proc/$1 ]] || grep -q '^State:.Z' "/proc/$1/status"; }

# husk_upgrade: starts another husk, which takes the socket over, and waits until the one before it is gone.
husk_upgrade() {
	local old next
	old=$(daemon_pid "$CURRENT")
	GENERATION=$((${GENERATION:-0} + 1))
	next=husk-$BATS_TEST_NUMBER-$GENERATION
	testnode start --dir "$NODE_DIR" "$next" "$HUSK_BIN_DIR/husk" --config "$HUSK_TMP/husk.toml" serve
	eventually 20 grep -q "serving CRI" "$NODE_DIR/log/$next.log"
	grep "serving CRI" "$NODE_DIR/log/$next.log" | grep -q "socket=hand-over" || fail "$next did not take the socket over"
	[[ ${1:-} == nowait ]] || eventually 20 gone "$old"
	CURRENT=$next
}

@test "$RESTARTS hand-overs at 50 requests per second: no request fails" {
	local i inode
	inode=$(stat -c %i "$FRONT_SOCK")
	load_start
	for ((i = 0; i < RESTARTS; i++)); do
		husk_upgrade
		sleep 0.3 # so that requests meet every state of it
	done
	load_stop
	load_is '.failures == 0 and .unavailable == 0'
	load_is '.requests > 150'
	assert_eq "$(stat -c %i "$FRONT_SOCK")" "$inode" "the socket's file"
	cri version
}

@test "$RESTARTS hand-overs under a client that does not wait for connections" {
	local i
	load_start --wait=false
	for ((i = 0; i < RESTARTS; i++)); do
		husk_upgrade
		sleep 0.3 # so that requests meet every state of it
	done
	load_stop
	load_is '.failures == 0 and (.requests > 150)'
}

@test "$RESTARTS restarts with systemd's socket: no request fails" {
	local i before
	husk_stop
	"$PINGER" keep --socket "$FRONT_SOCK" "$HUSK_BIN_DIR/husk" --config "$HUSK_TMP/husk.toml" serve \
		>"$HUSK_TMP/keep.out" 2>"$NODE_DIR/log/kept.log" 3>&- &
	KEEP_PID=$!
	export CRI_SOCK=$FRONT_SOCK
	eventually 20 cri version
	load_start
	for ((i = 0; i < RESTARTS; i++)); do
		before=$(grep -c "serving CRI.*socket=systemd" "$NODE_DIR/log/kept.log")
		kill -HUP "$KEEP_PID"
		eventually 20 served_more_than "$before"
		sleep 0.3
	done
	load_stop
	load_is '.failures == 0 and .unavailable == 0 and (.requests > 150)'
	assert_eq "$(grep -c restart "$HUSK_TMP/keep.out")" "$RESTARTS" restarts
	kill "$KEEP_PID"
	wait "$KEEP_PID"
	KEEP_PID=
}

served_more_than() { (($(grep -c "serving CRI.*socket=systemd" "$NODE_DIR/log/kept.log") > $1)); }

@test "a slow call under way when husk is replaced ends well" {
	local pod ctr old
	crictl pull "$REGISTRY/busybox:latest"
	pod=$(run_pod slow runc)
	ctr=$(run_ctr "$pod" slow slow "$REGISTRY/busybox:latest" -- "${SLEEP[@]}")
	crictl exec --sync "$ctr" /bin/sh -c 'echo begun >/begun; while ! [ -e /end ]; do sleep 0.1; done; echo done' \
		>"$HUSK_TMP/slow.out" 2>&1 3>&- &
	local call=$!
	eventually 20 stock exec --sync "$ctr" /bin/sh -c 'test -e /begun'
	old=$(daemon_pid "$CURRENT")
	husk_upgrade nowait
	# Longer than streams are given.
	sleep 3
	run ! gone "$old"
	crictl exec --sync "$ctr" /bin/sh -c 'echo >/end'
	wait "$call" || fail "the call failed: $(cat "$HUSK_TMP/slow.out")"
	assert_contains "$(cat "$HUSK_TMP/slow.out")" "done"
	eventually 20 gone "$old"
	crictl rmp -f "$pod"
}

@test "kill -9 leaves a socket that the next husk takes" {
	husk_stop KILL
	[[ -S $FRONT_SOCK ]]
	husk_start
	husk_upgrade
}

@test "CRI-O is restarted under the load: unavailable with the reason, and back by itself" {
	load_start
	[[ $(http_get /info) == *'"storage_driver"'* ]]
	crio_stop
	run cri version
	[[ $status -ne 0 ]]
	assert_contains "$output" "CRI-O does not answer on $BACKEND_SOCK"
	run http_get /info
	assert_contains "$output" "503 Service Unavailable"
	assert_contains "$output" "CRI-O does not answer on $BACKEND_SOCK"
	crio_start
	eventually 20 cri version
	[[ $(http_get /info) == *'"storage_driver"'* ]]
	load_stop
	load_is '.failures == 0 and .unavailable > 0 and .unavailable < .requests'
	load_is '.errors | all(contains("CRI-O does not answer on '"$BACKEND_SOCK"'"))'
}

# http_get PATH: what husk answers to cAdvisor, headers and all.
http_get() {
	printf 'GET %s HTTP/1.1\r\nHost: crio\r\nConnection: close\r\n\r\n' "$1" | socat -t 10 - "UNIX-CONNECT:$FRONT_SOCK"
}
