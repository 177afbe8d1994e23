#!/usr/bin/env bats
# The pull of the layers as kubelet sees it: it is a part of PullImage, with its secret, its reason and its back-off, and
# CreateContainer finds the layers ready. Guests have no credential of the node's here: what they fetch, they fetch with
# the pod's own.

load helpers
load kubelet
load operate

setup_file() {
	local handler
	node_up
	export FAULTS=$HUSK_TMP/faults PRIVATE=127.0.0.1:5555 METRICS_URL=http://husk METRICS_SOCKET=$HUSK_TMP/m.sock
	"$HUSK_BIN_DIR/mkimage" keygen "$HUSK_TMP/pair"
	cp "$HUSK_TMP/pair/private.pem" "$HUSK_TMP/keys/"
	tenants_up --faults "$FAULTS"
	# The host's policy accepts what the guests' does not.
	jq -n --arg scope "$TENANTS/locked" '{default: [{type: "insecureAcceptAnything"}], transports: {docker: {($scope): [{type: "reject"}]}}}' \
		>"$HUSK_TMP/guest-policy.json"
	echo "policy = \"$HUSK_TMP/guest-policy.json\"" >>"$HUSK_TMP/shim.toml"
	{
		cat "$HUSK_TMP/shim.toml"
		echo 'store_size = "4m"'
	} >"$HUSK_TMP/small.toml"
	handler=$(sed -n '/^\[crio.runtime.runtimes.husk\]/,/^$/p' "$NODE_DIR/conf/crio.conf")
	handler=${handler//runtimes.husk]/runtimes.small]}
	echo "${handler//shim.toml/small.toml}" >"$NODE_DIR/conf/crio.conf.d/60-small.conf"
	# Nobody listens there on the node, and in one pod its own registry does.
	printf '[[registry]]\nlocation = "%s"\ninsecure = true\n' "$PRIVATE" >>"$NODE_DIR/conf/registries.conf"
	crio_restart
	eventually 15 stock version
	husk_start "metrics_listen = \"unix://$METRICS_SOCKET\""
}

teardown_file() {
	nodes_down
}

setup() {
	MARK=$(mark)
}

teardown() {
	show_logs_on_failure
	local pod
	faults
	for pod in $(stock pods -q); do cri rmp -f "$pod"; done
}

# ---- images and their registry ----

# app NAME [FLAG OF mkimage build...]: Alice's image of that tag. Sets APP, its reference, and LAYER, its topmost layer.
app() {
	push "tenants/alice:$1" --user 1234 --layer "/a=$1" "${@:2}"
	APP=$TENANTS/tenants/alice:$1
	LAYER=$(layers_of "tenants/alice:$1" | tail -1)
}

# fetched [JQ]: how many layers the registry has sent to pods in this test.
fetched() {
	requests "${1:-true}" | jq -s --arg node "$NODE_IP" \
		'[.[] | select(.method == "GET" and .from != $node and (.path | contains("/blobs/sha256:")) and .status < 300)
			| select(.path | split("/")[-1] | IN($ARGS.positional[]))] | length' --args -- "${ALL_LAYERS[@]}"
}

# ---- pods ----

# start NAME IMAGE CREDENTIAL [FLAG...]: a pod of one container, beside others; an empty credential is none.
start() {
	local creds=()
	[[ -z $3 ]] || creds=(--creds "$3")
	launch run "$1" --handler husk "${creds[@]}" --container "c=$2" "${@:4}" -- "${WHO[@]}"
}

# ---- a pull is a pull ----

@test "PullImage brings the layers: CreateContainer asks nobody, and two containers share them" {
	local pod image one two ip
	app ready --layer-random 8MiB --encrypt-key "$HUSK_TMP/pair/public.pem"
	mapfile -t ALL_LAYERS < <(layers_of tenants/alice:ready)
	pod=$(run_pod ready husk)
	ip=$(pod_ip "$pod")
	# Both containers are pulled for at once, as kubelet does with parallel pulls.
	pull_image "$APP" ready --creds "alice:$ALICE" >"$BATS_TEST_TMPDIR/other" &
	image=$(pull_image "$APP" ready --creds "alice:$ALICE")
	wait $!
	assert_eq "$(<"$BATS_TEST_TMPDIR/other")" "$image"
	assert_eq "$(fetched)" "${#ALL_LAYERS[@]}" "layers that pods fetched"
	assert_eq "$(fetched ".from == \"$ip\" and .user == \"alice\"")" "${#ALL_LAYERS[@]}" "of them by this pod, as Alice"
	faults any=drop
	MARK=$(mark)
	one=$(run_ctr "$pod" ready one "$image=$APP" -- "${SLEEP[@]}")
	two=$(run_ctr "$pod" ready two "$image=$APP" -- "${SLEEP[@]}")
	assert_eq "$(crictl exec -s "$one" cat /a)$(crictl exec -s "$two" cat /a)" readyready
	assert_eq "$(requests true)" "" "requests after the pull"
	# A restart finds them too, and so does kubelet's next pull for the same pod.
	crictl rm -f "$two"
	run_ctr "$pod" ready three "$image=$APP" -- "${SLEEP[@]}"
	assert_eq "$(requests true)" "" "requests of a restart"
	faults
	pull_image "$APP" ready --creds "alice:$ALICE"
	assert_eq "$(fetched)" 0 "layers that were fetched again"
}

@test "with the gate or without, a restart after the registry is gone" {
	local gate
	app gone
	for gate in off on; do start "gone-$gate" "$APP" "alice:$ALICE" --gate "$gate"; done
	landed
	for gate in off on; do assert_eq "$(outputs "gone-$gate-run")" 1234; done
	faults any=drop
	for gate in off on; do launch restart "gone-$gate" --gate "$gate"; done
	landed
	assert_eq "$(outputs gone-on-restart)" 1234
	assert_eq "$(said gone-on-restart .pulls)" 0
	# Without the gate kubelet cannot know that the image is there, and has to ask.
	none gone-off-restart RegistryUnavailable
	faults
	again gone-off --after 15s
	landed
	pulls_again gone-off
}

# four NAME CREDENTIAL: starts pods NAME-POLICY-GATE, each with a name of its own for the image, so that no record of another
# pod is kubelet's answer. Adds them to PODS.
four() {
	local policy gate
	for policy in IfNotPresent Always; do
		for gate in off on; do
			tag "${APP#"$TENANTS/"}" "tenants/alice:$1-$policy-$gate"
			start "$1-$policy-$gate" "$TENANTS/tenants/alice:$1-$policy-$gate" "$2" --policy $policy --gate "$gate"
			PODS+=("$1-$policy-$gate")
		done
	done
}

# all_again [FLAG...]: the next sync of the PODS.
all_again() {
	local pod
	for pod in "${PODS[@]}"; do again "$pod" --gate "${pod##*-}" "$@"; done
	landed
}

@test "a wrong secret, and none: kubelet backs off, and the right one works" {
	local pod PODS=()
	app secret
	mapfile -t ALL_LAYERS < <(layers_of tenants/alice:secret)
	four wrong "alice:$WRONG"
	four none ""
	landed
	for pod in "${PODS[@]}"; do refused "$pod" ErrImagePull "code = Unauthenticated" "tenants/alice:$pod"; done
	all_again
	for pod in "${PODS[@]}"; do backs_off "$pod"; done
	assert_eq "$(fetched)" 0
	all_again --after 15s --creds "alice:$ALICE"
	for pod in "${PODS[@]}"; do pulls_again "$pod"; done
	assert_eq "$(fetched '.user == "alice"')" $((${#PODS[@]} * ${#ALL_LAYERS[@]}))
}

# refused_layer FAULT REASON TEXT...: a registry with that fault in one layer fails the pull, whatever the policy, with the
# gate or without, though the host has all that it needs; kubelet pulls again when its back-off is over.
refused_layer() {
	local pod PODS=() name=${1//:/-}
	app "$name" --layer-random 64KiB
	mapfile -t ALL_LAYERS < <(layers_of "tenants/alice:$name")
	faults "blob:$LAYER=$1"
	four "$name" "alice:$ALICE"
	landed
	for pod in "${PODS[@]}"; do refused "$pod" "${@:2}" "$LAYER"; done
	all_again
	faults
	for pod in "${PODS[@]}"; do backs_off "$pod"; done
	all_again --after 15s
	for pod in "${PODS[@]}"; do pulls_again "$pod"; done
	(($(fetched) >= 4 * ${#ALL_LAYERS[@]})) || fail "not every pod fetched the layers"
}

@test "a registry that refuses a layer alone" {
	refused_layer status:401 ErrImagePull "code = Unauthenticated"
}

@test "a registry that fails for a while" {
	refused_layer status:503 RegistryUnavailable "because the registry is unavailable"
}

@test "a layer that is not what its digest says" {
	refused_layer corrupt ErrImagePull "code = DataLoss"
}

@test "no key for the layers: the pull fails and says so" {
	app sealed --encrypt-key "$HUSK_TMP/pair/public.pem"
	mv "$HUSK_TMP/keys/private.pem" "$HUSK_TMP/keys.away"
	start sealed "$APP" "alice:$ALICE"
	landed
	mv "$HUSK_TMP/keys.away" "$HUSK_TMP/keys/private.pem"
	refused sealed ErrImagePull "code = PermissionDenied" "$TENANTS/tenants/alice" "key"
	again sealed
	landed
	backs_off sealed
	again sealed --after 15s
	landed
	pulls_again sealed
}

@test "a signature policy in the guest is kubelet's SignatureValidationFailed" {
	push locked/app:1 --layer /a=locked
	start locked "$TENANTS/locked/app:1" "admin:$ADMIN"
	landed
	refused locked SignatureValidationFailed "because the signature validation failed" "$TENANTS/locked/app:1"
	assert_eq "$(requests '.from != "'"$NODE_IP"'" and (.path | contains("/blobs/")) and .status == 200' | wc -l)" 0 "blobs"
}

@test "an image that does not fit is refused before a layer is asked for, with the numbers" {
	app large --layer-random 8MiB
	mapfile -t ALL_LAYERS < <(layers_of tenants/alice:large)
	start large "$APP" "alice:$ALICE" --handler small
	landed
	refused large ErrImagePull "code = ResourceExhausted" "$TENANTS/tenants/alice" "needs at least"
	[[ $(message large-run) =~ needs\ at\ least\ ([0-9]+)\ bytes,\ the\ store\ has\ room\ for\ ([0-9]+)\ of\ ([0-9]+) ]] || fail "$(message large-run)"
	((BASH_REMATCH[1] >= 8 << 20)) && ((BASH_REMATCH[2] <= 4 << 20)) && ((BASH_REMATCH[3] == 4 << 20))
	assert_eq "$(requests '.path | contains("'"$LAYER"'")' | jq -c 'select(.from != "'"$NODE_IP"'")')" "" "requests for the layer"
	app fits --layer-random 1MiB
	start fits "$APP" "alice:$ALICE" --handler small
	landed
	assert_eq "$(outputs fits-run)" 1234
}

# ---- while it runs ----

# slow NAME: Alice's image of that tag, whose topmost layer takes some 8 s.
slow() {
	app "$1" --layer-random 8KiB
	faults "blob:$LAYER=drip:1ms"
}

# pulls prints the pulls under way from that registry, as JSON lines: the machine may have pods of other nodes.
pulls() { husk pulls --format json | jq -c --arg r "$TENANTS/" '.[] | select(.reference | startswith($r))'; }

pulling() { [[ -n $(pulls | jq -c 'select(.bytes_done > 0)') ]]; }

no_pulls() { [[ -z $(pulls) ]]; }

# held SANDBOX: the images in that pod's store.
held() { husk images --sandboxes --format json | jq -c --arg s "$1" '.[] | select(.sandbox == $s)'; }

@test "a pull shows how far it is, and then which pod holds what" {
	local ok bytes one sandbox
	slow progress
	ok=$(metric 'husk_layer_pulls_total{handler="husk",outcome="ok"}')
	bytes=$(metric husk_layer_pulled_bytes_total)
	start progress "$APP" "alice:$ALICE" --namespace tenant
	eventually 10 pulling
	one=$(pulls)
	sandbox=$(jq -r .sandbox <<<"$one")
	assert_eq "$(jq -r '[.namespace, .pod, .layers] | join(" ")' <<<"$one")" "tenant progress 3"
	jq -e '.bytes_done > 0 and .bytes_done < .bytes and .layers_done < .layers' <<<"$one"
	assert_contains "$(husk pulls)" tenant/progress
	assert_eq "$(metric husk_layer_pulls_in_progress)" 1
	assert_eq "$(held "$sandbox")" "" "images while it runs"
	landed
	assert_eq "$(outputs progress-run)" 1234
	assert_eq "$(said progress-run .sandbox)" "$sandbox"
	no_pulls
	assert_eq "$(metric husk_layer_pulls_in_progress)" 0
	assert_eq "$(metric 'husk_layer_pulls_total{handler="husk",outcome="ok"}')" $((ok + 1))
	assert_eq "$(metric husk_layer_pulled_bytes_total)" $((bytes + $(jq -r '.instances[0].layerBytes' "$HUSK_TMP/tmp/tenants-alice-progress.json")))
	one=$(held "$sandbox")
	assert_eq "$(jq -r '[.namespace, .pod, .image_id] | join(" ")' <<<"$one")" "tenant progress $(said progress-run '.containers[0].imageRef')"
	jq -e --arg r "$TENANTS/tenants/alice@sha256:" --arg c "$(said progress-run '.containers[0].id')" \
		'(.reference | startswith($r)) and .bytes > 8192 and .store_used >= .bytes and .store_kind == "memory" and .containers == [$c]' <<<"$one"
	assert_contains "$(husk images --sandboxes)" tenant/progress
	(($(metric husk_sandboxes) >= 1 && $(metric husk_sandbox_images) >= 1 && $(metric husk_sandbox_store_bytes) > 8192))
	grep -q "pulling layers.* sandbox=$sandbox" "$NODE_DIR/log/husk.log"
	delete progress
	assert_eq "$(held "$sandbox")" "" "images of a pod that is gone"
}

@test "a pull that kubelet gives up ends at once and leaves nothing" {
	local sandbox store canceled
	slow canceled
	canceled=$(metric 'husk_layer_pulls_total{handler="husk",outcome="canceled"}')
	start canceled "$APP" "alice:$ALICE"
	eventually 10 pulling
	sandbox=$(pulls | jq -r .sandbox)
	store=/run/husk/pods/$sandbox/store
	kill "$(pgrep -P "${STARTED[0]}")"
	landed
	refused canceled ErrImagePull "code = Canceled"
	eventually 5 no_pulls
	assert_eq "$(find /sys/fs/cgroup -path "*$CGROUP_PARENT*/husk-*" -name cgroup.procs -exec cat {} +)" "" "children at work"
	in_sandbox "$sandbox" test -d "$store/images" # what is looked at is the store
	assert_eq "$(in_sandbox "$sandbox" find "$store/temp" -mindepth 1)" "" "temporary files"
	assert_eq "$(in_sandbox "$sandbox" find "$store/images" -name 'random*')" "" "a part of the layer"
	assert_eq "$(held "$sandbox")" "" "images"
	assert_eq "$(metric husk_layer_pulls_in_progress)" 0
	assert_eq "$(metric 'husk_layer_pulls_total{handler="husk",outcome="canceled"}')" $((canceled + 1))
	faults
	again canceled --after 15s
	landed
	pulls_again canceled
}

# ---- tenants ----

@test "two tenants share nothing: each pod asks with its own secret, and one without is refused" {
	local gate ip
	push tenants/bob:same --user 1234 --layer /a=same
	app same # the same layers
	mapfile -t ALL_LAYERS < <(layers_of tenants/alice:same)
	start alice "$APP" "alice:$ALICE" --namespace alice --ensure-secret-pulled-images
	start bob "$TENANTS/tenants/bob:same" "bob:$BOB" --namespace bob
	landed
	for who in alice bob; do
		assert_eq "$(outputs "$who-run")" 1234
		ip=$(pod_ip "$(said "$who-run" .sandbox)")
		assert_eq "$(fetched ".from == \"$ip\"")" "${#ALL_LAYERS[@]}" "layers that $who fetched"
		assert_eq "$(requests ".from == \"$ip\"" | jq -rs 'map(.user | select(. != "")) | unique | join(" ")')" "$who" "who asked as $who"
		assert_eq "$(requests ".from == \"$ip\"" | jq -rs 'map(.path | split("/")[3] | select(. != "" and . != null)) | unique | join(" ")')" "$who" "repositories"
	done
	# A second pod of Alice's pulls with her secret too, although the node has the image's record.
	start twin "$APP" "alice:$ALICE" --namespace alice --gate on
	landed
	assert_eq "$(outputs twin-run)" 1234
	assert_eq "$(said twin-run .pulls)" 1 "pulls of the second pod"
	MARK=$(mark)
	for gate in off on; do
		start "bare-$gate" "$APP" "" --namespace bare --gate "$gate" --ensure-secret-pulled-images
		start "other-$gate" "$APP" "bob:$BOB" --namespace bob --gate "$gate" --policy Always
	done
	landed
	for gate in off on; do
		refused "bare-$gate" ErrImagePull "code = Unauthenticated"
		refused "other-$gate" ErrImagePull "code = Unauthenticated"
	done
	# A kubelet that does not check whose image it is is told that this pod has none.
	start present "$APP" "" --namespace bare --gate on
	landed
	refused present ErrImagePull "code = Unauthenticated"
	assert_eq "$(fetched)" 0
	assert_eq "$(requests '.status == 200 and (.path | contains("/alice/"))')" ""
}

# nowhere SECRET: it stands in no file of the node's, in no log, and in no process's environment or command line, but for what
# the test itself keeps there.
nowhere() {
	local secret=$1 encoded found dir
	encoded=$(printf 'alice:%s' "$secret" | base64 -w0)
	found=$(grep -rlsF -D skip --exclude node.json -e "$secret" -e "$encoded" /run /var/lib "$NODE_DIR" "$HUSK_TMP/state" "$HUSK_TMP/shim.toml" || true)
	assert_eq "$found" "" "files" || return 1
	for dir in /proc/[0-9]*; do
		case $(readlink "$dir/exe") in */kubelet | */testnode | */fakeregistry | */bash | */grep | "") continue ;; esac
		! cat "$dir/environ" "$dir/cmdline" 2>/dev/null | grep -qaF -e "$secret" -e "$encoded" || fail "in $(readlink "$dir/exe")" || return 1
	done
}

# in_store TEXT...: the files of the pod's that hold one of them, as its shim sees them.
in_store() { in_sandbox "$SANDBOX" grep -rlsF -D skip "${@/#/-e}" "/run/husk/pods/$SANDBOX" || true; }

@test "the secret of a pull is in no file, no log and no process's environment" {
	local SANDBOX encoded
	encoded=$(printf 'alice:%s' "$ALICE" | base64 -w0)
	slow leaks
	start leaks "$APP" "alice:$ALICE"
	eventually 10 pulling
	SANDBOX=$(pulls | jq -r .sandbox)
	run ! nowhere "$TENANTS" # what is looked for can be found
	nowhere "$ALICE"
	assert_eq "$(in_store "$ALICE" "$encoded")" ""
	landed
	assert_eq "$(outputs leaks-run)" 1234
	nowhere "$ALICE"
	assert_eq "$(in_store "$ALICE" "$encoded")" ""
	assert_contains "$(in_store "$ALICE" leaks)" /store/images/
	run ! grep -rlF -e "$ALICE" "$OUT"
}

# ---- a network of the pod's own ----

@test "a registry that only the pod reaches, with the pod's own secret" {
	local pod ns
	husk_stop
	husk_start "metrics_listen = \"unix://$METRICS_SOCKET\"" '[handlers.husk]' 'pull_in_sandbox = true'
	pod=$(run_pod private husk)
	ns=$(stock inspectp "$pod" | jq -er '.info.runtimeSpec.linux.namespaces[] | select(.type == "network") | .path')
	testnode start --dir "$NODE_DIR" tenant nsenter "--net=$ns" "$FAKEREGISTRY" --listen "$PRIVATE" --user "alice:$ALICE" --log "$HUSK_TMP/private.jsonl"
	eventually 10 nsenter "--net=$ns" bash -c "echo >/dev/tcp/${PRIVATE/://}"
	app private
	nsenter "--net=$ns" skopeo copy -q --insecure-policy --dest-tls-verify=false --dest-creds "alice:$ALICE" \
		"oci:$HUSK_TMP/tmp/tenants-alice-private:latest" "docker://$PRIVATE/app:1"
	MARK=$(wc -l <"$HUSK_TMP/private.jsonl")
	run ! pull_image "$PRIVATE/app:1" private --creds "alice:$WRONG"
	assert_contains "$output" "code = Unauthenticated"
	run ! pull_image "$PRIVATE/app:1" private
	assert_contains "$output" "code = Unauthenticated"
	image=$(pull_image "$PRIVATE/app:1" private --creds "alice:$ALICE")
	tail -n "+$((MARK + 1))" "$HUSK_TMP/private.jsonl" | jq -se --arg l "$LAYER" \
		'[.[] | select(.path | endswith($l))] | length == 1 and .[0].user == "alice" and .[0].status == 200'
	MARK=$(wc -l <"$HUSK_TMP/private.jsonl")
	run_ctr "$pod" private c "$image=$PRIVATE/app:1" -- "${SLEEP[@]}"
	assert_eq "$(wc -l <"$HUSK_TMP/private.jsonl")" "$MARK" "requests after the pull"
	testnode stop --dir "$NODE_DIR" tenant
}

@test "no log holds a credential" {
	local word
	for word in "$ADMIN" "$ALICE" "$BOB" "$WRONG"; do refute_in_logs "$word"; done
}
