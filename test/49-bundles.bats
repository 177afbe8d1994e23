#!/usr/bin/env bats
# Husk's own containers and pods live in the storage of a stock CRI-O: it neither shows nor touches them, whatever it
# goes through, and holds their images for them.

# Each test has its own.
# shellcheck disable=SC2030,SC2031

load helpers

setup() {
	node_up
	husk_start
	BUNDLECTL=$HUSK_BIN_DIR/bundlectl
	if [[ ! -x $BUNDLECTL ]]; then
		BUNDLECTL=$BATS_FILE_TMPDIR/bundlectl
		[[ -x $BUNDLECTL ]] || CGO_ENABLED=0 go -C "$HUSK_ROOT" build \
			-tags "containers_image_openpgp exclude_graphdriver_btrfs" -o "$BUNDLECTL" ./test/bundlectl
	fi
	REF=$(push_image app:1 --layer /a=1)
	husk pull "$REF" >/dev/null
	RECORD=$(husk images --format json | jq -er '.[0].storage_id')
	MADE=$(bundles pod web "$RECORD")
	CTR=$(jq -er '.[1].id' <<<"$MADE")
	bundles finish "$CTR"
}

teardown() {
	show_logs_on_failure
	nodes_down
}

husk() { "$HUSK_BIN_DIR/husk" --config "$HUSK_TMP/husk.toml" "$@"; }

bundles() { "$BUNDLECTL" --root "$CRIO_ROOT" --runroot "$CRIO_RUNROOT" "$@"; }

crio_log_says() { grep -qF -- "$1" "$NODE_DIR/log/crio.log"; }

# all_there: Husk's containers are as they were made, and can be started.
all_there() {
	assert_eq "$(bundles list)" "$MADE" "the list" || return 1
	assert_eq "$(bundles check)" "[]" findings || return 1
	local bundle
	bundle=$(bundles finish "$CTR" | jq -er .) || return 1
	assert_eq "$(jq -r .root.path "$bundle/config.json")" "$bundle/rootfs" root.path || return 1
	[[ -z $(ls -A "$bundle/rootfs") ]] || fail "the rootfs is not empty"
}

# unseen: no CRI client is told of them.
unseen() {
	local client
	for client in stock cri; do
		refute_contains "$("$client" ps -a -o json)$("$client" pods -o json)" "$CTR" || return 1
		refute_contains "$("$client" ps -a -o json)$("$client" pods -o json)" "$(jq -r '.[0].id' <<<"$MADE")" || return 1
		run ! "$client" inspect "$CTR"
		run ! "$client" inspectp "$(jq -r '.[0].id' <<<"$MADE")"
		# CRI-O says yes to the removal of what it does not know.
		"$client" rm -f "$CTR" || true
		"$client" rmp -f "$(jq -r '.[0].id' <<<"$MADE")" || true
	done
	all_there
}

# pod_runs NAME: an ordinary pod of CRI-O's runs next to them.
pod_runs() {
	crictl pull "$REGISTRY/busybox:latest" >/dev/null || return 1
	POD=$(run_pod "$1" runc) || return 1
	BOX=$(run_ctr "$POD" "$1" "$1" "$REGISTRY/busybox:latest" -- "${SLEEP[@]}") || return 1
	assert_eq "$(crictl exec --sync "$BOX" echo alive)" alive
}

@test "CRI-O does not show or remove Husk's containers, and Husk none of CRI-O's" {
	pod_runs plain
	unseen
	assert_eq "$(stock ps -aq)" "$BOX" "the containers that CRI-O lists"
	assert_eq "$(stock pods -q)" "$POD" "the pods that CRI-O lists"
	run ! bundles remove "$BOX"
	assert_contains "$output" "not a container of husk's"
	run ! bundles remove "$POD"
	ctr_runs "$BOX"
	# Names that CRI-O has are free in Husk, and the other way round.
	bundles pod plain >/dev/null
	bundles remove plain
	local other
	other=$(run_pod web runc)
	run_ctr "$other" web web-0 "$REGISTRY/busybox:latest" -- "${SLEEP[@]}"
	crictl rmp -f "$POD" "$other"
	all_there
}

@test "CRI-O restarts, also after kill -9 and with its repair: they stay" {
	pod_runs plain
	crio_restart
	eventually 15 crictl version
	unseen
	crio_stop --signal KILL
	crio_start
	eventually 15 crictl version
	crio_log_says "for errors because of unclean shutdown"
	run ! crio_log_says "Attempting to repair" # it finds nothing wrong with them
	unseen
	ctr_runs "$BOX"

	# Something to repair: it removes that, and with RemoveContainers set, no container of Husk's.
	crictl pull "$(push_image plain:1 --layer /p=1)"
	crio_stop --signal KILL
	truncate -s 3 "$CRIO_ROOT/overlay-images/$(jq -r '.instances[0].configDigest | ltrimstr("sha256:")' "$HUSK_TMP/tmp/plain-1.json")/manifest"
	crio_start
	eventually 15 crictl version
	crio_log_says "Attempting to repair"
	unseen
	ctr_runs "$BOX"
	refute_contains "$(grep -F "$CTR" "$NODE_DIR/log/crio.log" | grep -Fv 'rpc error' || true)" "level=warning"
}

@test "a container whose image CRI-O's repair removes goes with it, and the rest stays" {
	crio_stop --signal KILL
	truncate -s 3 "$CRIO_ROOT/overlay-images/$RECORD/manifest"
	crio_start
	eventually 15 crictl version
	crio_log_says "Attempting to repair"
	assert_eq "$(bundles list | jq -c '[.[].name]')" '["web"]'
	assert_eq "$(bundles check)" "[]"
	[[ ! -e $CRIO_ROOT/overlay-containers/$CTR ]] || fail "its directory is left"
}

# umount_below DIR: unmounts all that is mounted there, the deepest first.
umount_below() {
	local m
	while read -r m; do umount "$m"; done < <(awk -v d="$1" 'index($5, d) == 1 {print $5}' /proc/self/mountinfo | sort -r)
}

# reboot [FILE...]: the machine restarts: what is in /run is gone, and CRI-O's version file with it.
reboot() {
	crio_stop
	umount_below "$CRIO_RUNROOT"
	find "$CRIO_RUNROOT" -mindepth 1 -delete
	rm -f "$NODE_DIR/crio/version" "$@"
	crio_start
	eventually 15 crictl version
}

@test "a reboot and an upgrade: CRI-O wipes its own and leaves Husk's" {
	pod_runs plain
	crictl stopp "$POD"
	reboot
	assert_eq "$(stock pods -q)$(stock ps -aq)" "" "CRI-O's own are wiped"
	unseen

	# After an upgrade the images of the wiped containers go too; not one that Husk's container holds.
	pod_runs again
	CRI_SOCK=$BACKEND_SOCK create_ctr "$POD" again held "$RECORD=$REF" \
		'.mounts = [{host_path: "/bin/busybox", container_path: "/bin/true", readonly: true}]' -- /bin/true
	crictl stopp "$POD"
	reboot "$NODE_DIR/crio/version-persist"
	assert_eq "$(stock pods -q)$(stock ps -aq)" "" "CRI-O's own are wiped"
	run ! stock inspecti -q "$REGISTRY/busybox:latest"
	crio_log_says "Failed to remove image $RECORD" # it tried
	assert_eq "$(husk images --format json | jq -r '.[].storage_id')" "$RECORD"
	unseen
}

@test "crio wipe --force leaves Husk's; with an unclean shutdown it removes the storage, and Husk goes on" {
	local crio
	pod_runs plain
	crictl stopp "$POD"
	crio=$(jq -er '.daemons.crio.argv[0]' "$NODE_DIR/node.json")
	crio_stop
	"$crio" --config "$NODE_DIR/conf/crio.conf" --config-dir "$NODE_DIR/conf/crio.conf.d" wipe --force
	all_there
	assert_eq "$(find "$CRIO_ROOT/overlay-containers" -mindepth 1 -maxdepth 1 -type d | wc -l)" 2 "Husk's two are left"
	crio_start
	eventually 15 crictl version
	unseen

	# What RemoveStorageDirectory does; crio wipe itself would leave a mark in /run/crio of this machine.
	crio_stop
	umount_below "$CRIO_ROOT"
	rm -rf --one-file-system "$CRIO_ROOT"
	crio_start
	eventually 15 crictl version
	assert_eq "$(bundles list)$(bundles check)$(bundles sweep)" "[][]null"
	husk pull "$REF" >/dev/null
	MADE=$(bundles pod web "$RECORD")
	CTR=$(jq -er '.[1].id' <<<"$MADE")
	unseen
}

@test "the image of a container is in use for everybody, until the container is removed" {
	local image
	image=$(husk images --format json | jq -er '.[0].image_id')
	run ! husk rm "$REF"
	assert_contains "$output" "a container was made from it"
	run ! cri rmi "$image"
	assert_contains "$output" FailedPrecondition
	run ! stock rmi "$RECORD"
	assert_contains "$output" "image used by"
	all_there
	assert_eq "$(husk images --format json | jq -r '.[].storage_id')" "$RECORD"

	run ! bundles remove web # the sandbox, before its member
	bundles remove "$CTR"
	[[ ! -e $CRIO_ROOT/overlay-containers/$CTR && ! -e $CRIO_RUNROOT/overlay-containers/$CTR ]] || fail "directories are left"
	bundles remove web
	husk rm "$REF"
	assert_eq "$(husk images --format json)" "[]"
	assert_eq "$(bundles list)" "[]"
}
