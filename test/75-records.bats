#!/usr/bin/env bats
# The records live in CRI-O's own storage: what CRI-O and its operator do to that storage leaves Husk working, and what
# Husk leaves there, whenever it is killed, leaves CRI-O working.

load helpers

setup() {
	node_up
	husk_start
	REF=$(push_image app:1 --layer /data=some --cmd /bin/sh --cmd -c --cmd "${SLEEP[2]}")
	IMAGE_ID=$(jq -r '.instances[0].configDigest | ltrimstr("sha256:")' "$HUSK_TMP/tmp/app-1.json")
}

teardown() {
	show_logs_on_failure
	nodes_down
}

husk() { "$HUSK_BIN_DIR/husk" --config "$HUSK_TMP/husk.toml" "$@"; }

# records prints what Husk stores, for comparison.
records() { husk images --format json | jq -cS .; }

# listed prints the image IDs that CRI clients see, with their handlers.
listed() { cri images -o json | jq -r '.images[] | "\(.spec.runtimeHandler // "") \(.id)"' | sort; }

# guest_runs POD: a pod of the husk handler pulls and runs.
guest_runs() {
	local pod image ctr
	pod=$(run_pod "$1" husk) || return 1
	image=$(pull_image "$REF" "$1") || return 1
	ctr=$(run_ctr "$pod" "$1" c "$image=$REF") || return 1
	assert_eq "$(crictl exec -s "$ctr" cat /data)" some || return 1
	assert_eq "$(ctr_status "$ctr" .imageId)" "$IMAGE_ID" || return 1
	echo "$pod" "$ctr"
}

# graph_mounts prints what is mounted below CRI-O's storage, the deepest first.
graph_mounts() { awk -v d="$CRIO_ROOT" 'index($5, d) == 1 {print $5}' /proc/self/mountinfo | sort -r; }

crio_log_says() { grep -qF -- "$1" "$NODE_DIR/log/crio.log"; }

@test "kill -9 of CRI-O: its internal_repair leaves the records alone" {
	local before seen pod ctr husk_pid plain_id
	husk_pid=$(daemon_pid husk)
	crictl pull "$(push_image plain:1 --layer /p=1)"
	plain_id=$(jq -r '.instances[0].configDigest | ltrimstr("sha256:")' "$HUSK_TMP/tmp/plain-1.json")
	pull_image "$(push_image idle:1 --layer /i=1)" --runtime-handler husk # no container uses this one
	read -r pod ctr <<<"$(guest_runs one)"
	before=$(records)
	seen=$(listed)
	assert_eq "$(jq length <<<"$before")" 2

	crio_stop --signal KILL
	crio_start
	eventually 15 crictl version
	crio_log_says "for errors because of unclean shutdown"
	run ! crio_log_says "Attempting to repair" # CRI-O found nothing wrong with a record
	assert_eq "$(records)" "$before"
	assert_eq "$(listed)" "$seen"
	ctr_runs "$ctr"

	# With a damaged ordinary image it has something to repair, and removes that one alone.
	crio_stop --signal KILL
	truncate -s 3 "$CRIO_ROOT/overlay-images/$plain_id/manifest"
	crio_start
	eventually 15 crictl version
	crio_log_says "Attempting to repair"
	assert_eq "$(records)" "$before"
	assert_eq "$(listed)" "$(grep -v "$plain_id" <<<"$seen")"
	ctr_runs "$ctr"
	# A container from the record that is there, without a pull; then a pod with one.
	ctr=$(run_ctr "$pod" one again "$IMAGE_ID=$REF")
	assert_eq "$(crictl exec -s "$ctr" cat /data)" some
	guest_runs two
	husk check
	assert_eq "$(daemon_pid husk)" "$husk_pid" "husk was not restarted"
}

@test "a record that CRI-O's internal_repair removes is pulled again" {
	local id
	pull_image "$REF" --runtime-handler husk
	id=$(records | jq -r '.[0].storage_id')
	truncate -s 3 "$CRIO_ROOT/overlay-images/$id/manifest"
	run -1 husk check
	assert_contains "$output" damaged-data
	crio_stop --signal KILL
	crio_start
	eventually 15 crictl version
	crio_log_says "Attempting to repair"
	assert_eq "$(records)" '[]'
	refute_contains "$(listed)" "$IMAGE_ID"
	husk check
	guest_runs one
}

@test "crio wipe: husk says what is left, and goes on" {
	local pod ctr other husk_pid crio
	husk_pid=$(daemon_pid husk)
	read -r pod ctr <<<"$(guest_runs one)"
	other=$(push_image other:1 --layer /o=1)
	pull_image "$other" --runtime-handler husk
	crictl stopp "$pod"
	crio=$(jq -er '.daemons.crio.argv[0]' "$NODE_DIR/node.json")
	crio_stop
	"$crio" --config "$NODE_DIR/conf/crio.conf" --config-dir "$NODE_DIR/conf/crio.conf.d" wipe --force
	# It wipes the containers of CRI-O and their images: the record of this one, while husk runs.
	assert_eq "$(records | jq -c '[.[].references[].reference]')" "[\"$other\"]"
	run ! crictl version
	assert_contains "$output" Unavailable
	crio_start
	eventually 15 crictl version
	refute_contains "$(listed)" "$IMAGE_ID"
	run ! cri inspecti "$IMAGE_ID"
	guest_runs two
	husk check
	assert_eq "$(daemon_pid husk)" "$husk_pid" "husk was not restarted"
}

@test "a storage reset: husk goes on without a restart" {
	local pod ctr husk_pid m
	husk_pid=$(daemon_pid husk)
	read -r pod ctr <<<"$(guest_runs one)"
	crictl pull "$REF"
	crictl rmp -f "$pod"
	crio_stop
	for m in $(graph_mounts); do umount "$m"; done
	find "$CRIO_ROOT" -mindepth 1 -delete
	find "$CRIO_RUNROOT" -mindepth 1 -delete
	run -5 husk images # there is no storage, and who looks makes none
	assert_contains "$output" "has CRI-O run on this machine?"
	assert_eq "$(ls -A "$CRIO_ROOT")" ""
	crio_start
	eventually 15 crictl version
	assert_eq "$(listed | grep -c "$IMAGE_ID" || true)" 0
	read -r pod ctr <<<"$(guest_runs two)"
	crictl pull "$REF"
	assert_eq "$(listed | grep "$IMAGE_ID")" "$(printf ' %s\nhusk %s' "$IMAGE_ID" "$IMAGE_ID")"
	crictl rmp -f "$pod"

	# And once more the way CRI-O itself does it, the directory and all.
	crio_stop
	for m in $(graph_mounts); do umount "$m"; done
	rm -rf --one-file-system "$CRIO_ROOT"
	crio_start
	eventually 15 crictl version
	guest_runs three
	husk check
	assert_eq "$(daemon_pid husk)" "$husk_pid" "husk was not restarted"
}

# used CLIENT: the bytes in use by images, as the client is told.
used() { "$1" imagefsinfo | jq -er '(.imageFilesystems // .status.imageFilesystems)[0].usedBytes.value | tonumber'; }

@test "ImageFsInfo is CRI-O's, and counts the records" {
	local before grown stored i
	before=$(used cri)
	assert_eq "$before" "$(used stock)"
	# A config of 200 kB, so that what is counted stands out.
	push_image big:1 --label "text=$(head -c 100000 /dev/urandom | base64 -w0 | head -c 130000)" >/dev/null
	pull_image "$REGISTRY/big:1" --runtime-handler husk
	grown=$(used cri)
	assert_eq "$grown" "$(used stock)"
	stored=$(records | jq '.[0].stored_bytes')
	((stored > 130000)) || fail "the record has only $stored bytes"
	# Besides the record there is its entry in images.json.
	((grown - before >= stored && grown - before <= stored + 16384)) || fail "$before, then $grown, with a record of $stored"
	# Locks and checks of Husk's add nothing to it.
	for i in 1 2 3; do husk check; done
	assert_eq "$(used cri)" "$grown"
	husk rm "$REGISTRY/big:1"
	(($(used cri) - before <= 16384)) || fail "$before, then $(used cri) with the record gone"
}

# repairable FILE: all that a check found is what a killed writer leaves.
repairable() { jq -e 'all(.findings[]; .kind | IN("half-record", "stray-file", "orphan-data", "signature-mismatch"))' "$1" >/dev/null; }

# after_kill: CRI-O lists its images, and what is left can be repaired. Counts what was found.
after_kill() {
	stock images -o json >/dev/null || fail "stock CRI-O cannot list images" || return 1
	husk check --format json >"$HUSK_TMP/report.json" 2>/dev/null || true
	repairable "$HUSK_TMP/report.json" || fail "$(<"$HUSK_TMP/report.json")" || return 1
	FOUND=$((FOUND + $(jq '.findings | length' "$HUSK_TMP/report.json")))
	husk check --repair >/dev/null || fail "not repaired" || return 1
	husk check >/dev/null || fail "something is left" || return 1
	stock images -o json >/dev/null || fail "stock CRI-O cannot list images after the repair"
}

@test "kill -9 of husk in the middle of pulls leaves nothing that husk check cannot repair" {
	local i pid whole took
	FOUND=0
	for i in $(seq 24); do push_image "many:$i" --layer "/n=$i" >/dev/null; done
	# husk serve, killed while it pulls four images.
	for i in 1 2 3 4 5 6; do
		for pid in 1 2 3 4; do
			{ pull_image "$REGISTRY/many:$((i * 4 - 4 + pid))" --runtime-handler husk >/dev/null 2>&1 || true; } &
		done
		sleep "0.$((RANDOM % 9))$((RANDOM % 9))"
		husk_stop KILL
		wait
		after_kill
		husk_start
	done
	whole=$(records | jq length)
	for i in $(seq 24); do husk rm "$REGISTRY/many:$i" >/dev/null 2>&1 || true; done
	# husk pull, killed at any moment of its short life, more often towards its end.
	took=${EPOCHREALTIME/./}
	husk pull "$REF" >/dev/null
	took=$((${EPOCHREALTIME/./} - took)) # microseconds
	husk rm "$REF" >/dev/null
	for i in $(seq 24); do
		"$HUSK_BIN_DIR/husk" --config "$HUSK_TMP/husk.toml" pull "$REGISTRY/many:$i" >/dev/null 2>&1 &
		pid=$!
		sleep "$(printf '%d.%06d' 0 $((took / 4 + RANDOM * took / 32768)))"
		kill -9 "$pid" 2>/dev/null || true
		wait "$pid" 2>/dev/null || true
		after_kill
	done
	echo "# $FOUND findings; $whole and $(records | jq length) of 24 pulls were done before the kill" >&3
	for i in $(seq 24); do pull_image "$REGISTRY/many:$i" --runtime-handler husk >/dev/null; done
	assert_eq "$(records | jq length)" 24
	husk check
	guest_runs one
}
