#!/usr/bin/env bats
# husk guest: image-rs's place in a guest, with a registry, a hub and an attestation agent, in a network and a mount
# namespace of their own. No node and no CRI-O take part.

load helpers

setup_file() {
	local tool
	for tool in fakeregistry mkimage; do
		[[ -x $HUSK_BIN_DIR/$tool ]] || CGO_ENABLED=0 go -C "$HUSK_ROOT" build -tags containers_image_openpgp,exclude_graphdriver_btrfs -o "$HUSK_BIN_DIR/$tool" "./test/$tool"
	done
	[[ -x $HUSK_BIN_DIR/cdhclient ]] || CGO_ENABLED=0 go -C "$HUSK_ROOT" build -o "$HUSK_BIN_DIR/cdhclient" ./internal/testkit/cdhclient/cmd
	G=$(mktemp -d /tmp/hk.XXXXXX)
	export G PIDS=$G/pids REGISTRY=127.0.0.1:5000
	: >"$PIDS"
	# What keeps the namespaces; everything else enters them.
	spawn anchor unshare --mount --net --propagation private sh -c "mount -t tmpfs tmpfs $G/m && ip link set lo up && echo ready && exec sleep 3600"
	# shellcheck disable=SC2031
	export ANCHOR=$SPAWNED
	mkdir -p "$G/m"
	wait_for_line "$G/anchor.log" ready
	in_guest mkdir -p "$G/m/bundles" "$G/m/keys" "$G/m/aa" "$G/m/hub"

	"$HUSK_BIN_DIR/mkimage" keygen "$G/keys"
	in_guest cp "$G/keys/private.pem" "$G/m/keys/"
	spawn registry nsenter -t "$ANCHOR" -m -n "$HUSK_BIN_DIR/fakeregistry" -listen "$REGISTRY" -log "$G/access.log"
	wait_for_line "$G/registry.log" "$REGISTRY"
	image plain
	image encrypted --encrypt-key "$G/keys/public.pem"
	echo '{"default":[{"type":"reject"}]}' >"$G/reject.json"
	spawn hub nsenter -t "$ANCHOR" -m -n "$HUSK_BIN_DIR/cdhclient" fake --socket "$G/m/hub/s" --echo api.FutureService \
		--resource "kbs:///default/policy/1=$G/reject.json" --resource "kbs:///default/key/1=$G/keys/public.pem"
	wait_for_line "$G/hub.log" ready
	spawn aa nsenter -t "$ANCHOR" -m -n "$HUSK_BIN_DIR/cdhclient" fake --socket "$G/m/aa/s"
	wait_for_line "$G/aa.log" ready
}

teardown_file() {
	local pid
	while read -r pid; do kill "$pid" 2>/dev/null || true; done <"$PIDS"
	rm -rf --one-file-system "$G"
}

setup() {
	config "" >"$G/cdh.toml"
	serve
}

teardown() {
	[[ -n $BATS_TEST_COMPLETED ]] || tail -n 30 "$G/husk.log" >&2
	stop_husk
	in_guest sh -c "rm -rf $G/m/bundles/* $G/m/work"
}

# spawn NAME COMMAND...: a daemon whose output is in $G/NAME.log. Sets SPAWNED, its pid.
spawn() {
	local name=$1
	shift
	[[ $name != anchor ]] || mkdir -p "$G/m"
	"$@" >"$G/$name.log" 2>&1 3>&- &
	SPAWNED=$!
	echo "$SPAWNED" >>"$PIDS"
}

# wait_for_line FILE TEXT
wait_for_line() {
	local tries
	for ((tries = 0; tries < 400; tries++)); do
		grep -qF -- "$2" "$1" 2>/dev/null && return
		sleep 0.05
	done
	fail "no '$2' in $1: $(cat "$1")"
}

in_guest() { nsenter -t "$ANCHOR" -m -n "$@"; }

# image NAME [FLAG OF mkimage build...]: an image with a named user, in the registry.
image() {
	local name=$1
	shift
	"$HUSK_BIN_DIR/mkimage" build --output "oci:$G/layout:$name" --summary "$G/$name.json" --passwd 'web:x:1234:1235::/srv:/bin/sh' \
		--group 'web:x:1235:' --layer "/data=from $name" --user web --env A=1 --entrypoint /bin/cat --cmd /data --workdir /srv/app "$@"
	in_guest "$HUSK_BIN_DIR/mkimage" push "oci:$G/layout:$name" "$REGISTRY/$name:1"
}

# pinned NAME: its reference with the digest.
pinned() { echo "$REGISTRY/$1@$(jq -r .digest "$G/$1.json")"; }

# config LINE...: cdh.toml with these lines in [image].
config() {
	printf '[image]\nwork_dir = "%s"\n' "$G/m/work"
	printf '%s\n' "$@"
	printf '[[image.registry_config.registry]]\nlocation = "%s"\ninsecure = true\n' "$REGISTRY"
}

flags() {
	echo --cdh-config "$G/cdh.toml" --kernel-parameters /dev/null --run-dir "$G/m/run" --bundle-parent "$G/m/bundles" \
		--keys-dir "$G/m/keys" --cdh-socket "$G/m/hub/s" --aa-socket "$G/m/aa/s"
}

serve() {
	# shellcheck disable=SC2046
	spawn husk nsenter -t "$ANCHOR" -m -n "$HUSK_BIN_DIR/husk" guest serve $(flags) --socket "$G/m/cdh.sock"
	HUSK=$SPAWNED
	wait_for_line "$G/husk.log" serving
}

stop_husk() {
	[[ -n ${HUSK:-} ]] || return 0
	kill "$HUSK" 2>/dev/null || true
	wait "$HUSK" || true
	HUSK=
}

cdh() { in_guest "$HUSK_BIN_DIR/cdhclient" "$1" --socket "$G/m/cdh.sock" "${@:2}"; }
pull() { cdh pull "$1" "$G/m/bundles/$2"; }
overlays() { in_guest grep -c " $G/m/bundles/.* - overlay " /proc/self/mountinfo || true; }

@test "a bundle of a plain and of an encrypted image runs" {
	local name
	for name in plain encrypted; do
		run -0 pull "$(pinned "$name")" "$name"
		assert_eq "$output" "$(jq -r .digest "$G/$name.json")" "digest"
		assert_eq "$(in_guest cat "$G/m/bundles/$name/rootfs/data")" "from $name" "content"
		in_guest cat "$G/m/bundles/$name/config.json" >"$G/config.json"
		assert_eq "$(jq -c '[.process.args, .process.cwd, .process.user.uid, .process.user.gid]' "$G/config.json")" \
			'[["/bin/cat","/data"],"/srv/app",1234,1235]' "process"
		jq -e '.process.env | index("A=1") and index("HOME=/srv")' "$G/config.json"
		assert_eq "$(in_guest chroot --userspec=1234:1235 "$G/m/bundles/$name/rootfs" /bin/cat /data)" "from $name" "its command"
		jq -e --arg i "$(pinned "$name")" --arg d "$output" 'select(.domain == "github.com/confidential-containers" and .operation == "PullImage") |
			.content | fromjson | select(.image == $i and .digest == $d)' <(grep '^{' "$G/aa.log")
	done
	[[ $(in_guest readlink /proc/self/ns/net) != "$(readlink /proc/self/ns/net)" ]]
	[[ $(grep -c "$G/m/bundles" /proc/self/mountinfo) == 0 ]] || fail "the mounts are visible outside"
}

@test "the second pull needs no network, and has a file system of its own" {
	pull "$(pinned encrypted)" a
	: >"$G/access.log"
	pull "$(pinned encrypted)" b
	assert_eq "$(cat "$G/access.log")" "" "requests"
	in_guest sh -c "echo changed >$G/m/bundles/a/rootfs/data"
	assert_eq "$(in_guest cat "$G/m/bundles/b/rootfs/data")" "from encrypted" "the other"
}

@test "two pulls of one image at once fetch it once" {
	: >"$G/access.log"
	pull "$(pinned plain)" a >"$G/a.out" 3>&- &
	local other=$!
	run -0 pull "$(pinned plain)" b
	wait "$other"
	assert_eq "$output $(cat "$G/a.out")" "$(jq -r '"\(.digest) \(.digest)"' "$G/plain.json")" "digests"
	assert_eq "$(jq -s --slurpfile i "$G/plain.json" '[$i[0].instances[0].layers[].digest] as $layers |
		map(select(.method == "GET" and (.path | split("/") | last | IN($layers[])))) | length == ($layers | length)' "$G/access.log")" \
		true "requests for layers: $(cat "$G/access.log")"
	assert_eq "$(overlays)" 2 "mounts"
}

@test "after a restart, what was pulled needs no network" {
	pull "$(pinned encrypted)" a
	stop_husk
	serve
	: >"$G/access.log"
	pull "$(pinned encrypted)" b
	assert_eq "$(cat "$G/access.log")" "" "requests"
	assert_eq "$(in_guest cat "$G/m/bundles/b/rootfs/data")" "from encrypted" "content"
}

@test "an orderly end leaves nothing but the layers" {
	pull "$(pinned plain)" a
	in_guest mkdir "$G/m/bundles/b"
	pull "$(pinned plain)" b
	assert_eq "$(overlays)" 2 "mounts"
	stop_husk
	assert_eq "$(overlays)" 0 "mounts"
	assert_eq "$(in_guest ls -A "$G/m/bundles" "$G/m/bundles/b" "$G/m/run")" \
		"$(printf '%s:\nb\n\n%s:\n\n%s:' "$G/m/bundles" "$G/m/bundles/b" "$G/m/run")" "the agent's directory, and nothing else"
	assert_eq "$(in_guest ls "$G/m/work/bundles")" "lock" "state"
	in_guest test ! -e "$G/m/cdh.sock"
}

@test "a killed husk leaves bundles that work, and what the next one understands" {
	pull "$(pinned plain)" a
	pull "$(pinned plain)" half
	kill -9 "$HUSK"
	wait "$HUSK" || true
	in_guest sh -c "ls $G/m/run | grep -q config-" || fail "no files to clear up"
	# As if it had died in the middle of the second.
	local state
	state=$(in_guest grep -l '"bundle":"[^"]*/half"' -r "$G/m/work/bundles" --include record.json)
	in_guest rm "$(dirname "$state")/complete"
	serve
	assert_eq "$(in_guest ls "$G/m/bundles")" a "bundles"
	assert_eq "$(in_guest cat "$G/m/bundles/a/rootfs/data")" "from plain" "the whole one"
	assert_eq "$(in_guest ls "$G/m/run")" "" "files with credentials"
	pull "$(pinned plain)" half
	assert_eq "$(overlays)" 2 "mounts"
}

@test "failures have CDH's form and leave nothing" {
	run ! pull "$REGISTRY/none@$(jq -r .digest "$G/plain.json")" c
	assert_contains "$output" "[CDH] [ERROR]:"
	assert_contains "$output" "$REGISTRY/none"
	assert_contains "$output" "Internal"
	in_guest mv "$G/m/keys" "$G/m/keys.away"
	run ! pull "$(pinned encrypted)" c
	in_guest mv "$G/m/keys.away" "$G/m/keys"
	assert_contains "$output" "[CDH] [ERROR]:"
	assert_contains "$output" "encrypted"
	assert_eq "$(in_guest ls "$G/m/bundles")" "" "bundles"
	assert_eq "$(overlays)" 0 "mounts"
}

@test "hostile bundle paths change nothing" {
	in_guest sh -c "mkdir -p $G/m/outside $G/m/bundles/full $G/m/bundles/linked; echo canary >$G/m/outside/canary
		echo canary >$G/m/bundles/full/config.json; ln -s $G/m/outside $G/m/bundles/link; ln -s $G/m/outside $G/m/bundles/linked/rootfs"
	local before path
	before=$(in_guest find "$G/m/bundles" "$G/m/outside")
	for path in "" relative "$G/m/bundles/../outside" "$G/m/outside" "$G/m/bundles" "$G/m/bundles/link" "$G/m/bundles/link/x" \
		"$G/m/bundles/linked" "$G/m/bundles/full" "$G/m/bundles/no/such"; do
		run ! cdh pull "$(pinned plain)" "$path"
		assert_contains "$output" "[CDH] [ERROR]:"
		assert_eq "$(in_guest find "$G/m/bundles" "$G/m/outside")" "$before" "after $path"
	done
	assert_eq "$(in_guest cat "$G/m/outside/canary" "$G/m/bundles/full/config.json" | sort -u)" canary "canaries"
	assert_eq "$(overlays)" 0 "mounts"
}

@test "everything else on the socket is the hub's" {
	run -0 cdh resource kbs:///default/key/1
	assert_eq "$output" "$(cat "$G/keys/public.pem")" "resource"
	run ! cdh resource kbs:///default/none/1
	assert_contains "$output" "[CDH] [ERROR]: Get Resource failed"
	run -0 cdh call api.FutureService Echo $'\n\x03abc'
	assert_contains "$output" "abc"
	run ! cdh call api.OtherService Any ""
	assert_contains "$output" "Unimplemented"
}

@test "a policy of the key broker is enforced, and read once" {
	stop_husk
	config 'image_security_policy_uri = "kbs:///default/policy/1"' >"$G/cdh.toml"
	serve
	run ! pull "$(pinned plain)" c
	assert_contains "$output" "[CDH] [ERROR]:"
	assert_contains "$output" "policy"
	config "" >"$G/cdh.toml"
	run ! pull "$(pinned plain)" c
	assert_contains "$output" "policy"
}

@test "the debug commands pull, list and show" {
	local guest=(in_guest "$HUSK_BIN_DIR/husk" guest)
	# shellcheck disable=SC2046
	run -0 --separate-stderr "${guest[@]}" pull $(flags) --format json "$REGISTRY/plain:1"
	assert_eq "$(jq -r '[.name, .reference, .manifest_digest] | join(" ")' <<<"$output")" \
		"$REGISTRY/plain:1 $(pinned plain) $(jq -r .digest "$G/plain.json")" "pull"
	assert_eq "$(in_guest ls "$G/m/run")" "" "files with credentials"
	# shellcheck disable=SC2154
	[[ $stderr != *layersDone* && $stderr != *$'\r'* ]] || fail "progress without a terminal: $stderr"
	# shellcheck disable=SC2046
	run -0 --separate-stderr "${guest[@]}" pull $(flags) --progress json "oci:$G/layout:encrypted"
	assert_eq "$(jq -sc 'map(select(has("layers"))) | last | [.layers == .layersDone, .bytes == .bytesDone, .bytes > 0]' <<<"$stderr")" \
		'[true,true,true]' "lines of JSON, the log's too: $stderr"
	local store=(--cdh-config "$G/cdh.toml" --kernel-parameters /dev/null)
	run -0 "${guest[@]}" images "${store[@]}" --format '{{.ImageID}}'
	run -0 "${guest[@]}" inspect "${store[@]}" "${output:0:12}"
	assert_eq "$(jq -r .config.config.User <<<"$output")" web "user"
	run -0 "${guest[@]}" images "${store[@]}"
	assert_contains "$output" "$(pinned plain)"
	run -0 "${guest[@]}" inspect "${store[@]}" "$REGISTRY/plain:1"
	run -3 "${guest[@]}" inspect "${store[@]}" nothing-like-it
	# shellcheck disable=SC2046
	run -0 --separate-stderr "${guest[@]}" pull $(flags) --bundle "$G/m/bundles/cli" "$REGISTRY/plain:1"
	assert_eq "$output" "$(jq -r .digest "$G/plain.json")" "digest"
	assert_eq "$(in_guest cat "$G/m/bundles/cli/rootfs/data")" "from plain" "it stays"
}
