#!/usr/bin/env bats
# What the front makes of images on a real CRI-O: what a name stands for, whose images a client sees, what a removal
# removes, what a pod may not say of itself, and that everything else is CRI-O's own answer.

# shellcheck disable=SC2030,SC2031 # each test is a subshell; image sets REF and more in the test's own
load helpers

# The runtime handlers of this node that pull in the guest, as husk sorts them.
readonly GUESTS='["husk","small","tight"]'

# more_handlers adds two guest-pull handlers to CRI-O: husk's limits differ by handler.
more_handlers() {
	local name
	for name in small tight; do
		cat <<-TOML
			[crio.runtime.runtimes.$name]
			runtime_type = "vm"
			runtime_path = "$HUSK_BIN_DIR/containerd-shim-husk-v2"
			runtime_root = "$NODE_DIR/crio/$name"
			runtime_pull_image = true
			runtime_config_path = "$HUSK_TMP/shim.toml"
		TOML
	done >"$NODE_DIR/conf/crio.conf.d/60-more.conf"
}

setup_file() {
	node_up
	more_handlers
	sed -i 's/^short-name-mode.*/short-name-mode = "enforcing"/' "$NODE_DIR/conf/registries.conf"
	printf '\n[aliases]\n"front-short" = "%s/named"\n' "$REGISTRY" >>"$NODE_DIR/conf/registries.conf"
	crio_restart
	husk_start '[handlers.small]' 'max_layers = 2' '[handlers.tight]' 'max_image_size = "64KiB"'
	# protoc of Debian 12 does not know this option, which says what is not for logs.
	mkdir "$HUSK_TMP/proto"
	sed 's/\[debug_redact = true\]//' "$(go -C "$HUSK_ROOT" list -m -f '{{.Dir}}' k8s.io/cri-api)/pkg/apis/runtime/v1/api.proto" >"$HUSK_TMP/proto/api.proto"
	run_pod guest husk >"$HUSK_TMP/guest"
	run_pod plain runc >"$HUSK_TMP/plain"
	stock pull "$REGISTRY/busybox:latest"
}

teardown_file() {
	nodes_down
}

setup() {
	GUEST=$(<"$HUSK_TMP/guest")
	PLAIN=$(<"$HUSK_TMP/plain")
	BUSYBOX=$REGISTRY/busybox:latest
}

teardown() {
	show_logs_on_failure
	[[ -z ${STREAMS:-} ]] || kill "${STREAMS[@]}"
}

husk() { "$HUSK_BIN_DIR/husk" --config "$HUSK_TMP/husk.toml" "$@"; }

# ---- images ----

# summary NAME-TAG JQ: of an image that push_image made.
summary() { jq -er "$2" "$HUSK_TMP/tmp/$1.json"; }

# image NAME [FLAG OF mkimage build...]: pushes REGISTRY/NAME:1 and sets REF, ID (of the image), MANIFEST and PINNED.
image() {
	local name=$1
	REF=$(push_image "$name:1" --layer "/data=$name" "${@:2}") || return 1
	ID=$(summary "$name-1" '.instances[0].configDigest | ltrimstr("sha256:")') || return 1
	MANIFEST=$(summary "$name-1" .digest) || return 1
	PINNED=$REGISTRY/$name@$MANIFEST
}

# also_as REFERENCE: gives REF another name in the registry.
also_as() {
	skopeo copy -q --insecure-policy --src-tls-verify=false --dest-tls-verify=false "docker://$REF" "docker://$1"
}

guest_pull() { cri pull --runtime-handler husk "$1" >/dev/null; }
full_pull() { cri pull --runtime-handler runc "$1" >/dev/null; }

# held ID prints who has the image with that ID: CRI-O's own tags, and the references of husk's records.
held() {
	stock images -o json | jq -cS --arg id "$1" '[.images[] | select(.id == $id).repoTags[]] | sort'
	husk images --format json | jq -cS --arg id "$1" '[.[] | select(.image_id == $id).references[].reference] | sort'
}

# everything prints all that CRI-O and husk have: what a refused call must not have changed.
everything() {
	stock images -o json | jq -cS '.images | sort_by(.id)[]'
	husk images --format json | jq -cS .
	stock ps -a -o json | jq -cS '[.containers[] | {id, state}] | sort'
	stock pods -o json | jq -cS '[.items[] | {id, state}] | sort'
}

# refused PART COMMAND...: the command fails, says PART, and has changed nothing since BEFORE=$(everything).
refused() {
	local part=$1
	shift
	run ! "$@"
	assert_contains "$output" "$part"
	assert_eq "$(everything)" "$BEFORE" "what the node has after: $*"
}

# ---- gRPC by hand: what no client here can say ----

# rpc PROTO-FOLDER SERVICE METHOD TEXT: makes a call to husk with a request METHODRequest in protobuf's text format and
# prints METHODResponse likewise. An error is printed as "CODE MESSAGE".
rpc() {
	local dir=$1 package=${2%.*} method=$3 size head=$BATS_TEST_TMPDIR/head body=$BATS_TEST_TMPDIR/body code
	protoc -I "$dir" --encode="$package.${method}Request" "$dir"/*.proto <<<"$4" >"$body.request" || return 1
	size=$(printf '%08x' "$(stat -c %s "$body.request")")
	{
		printf '\0%b' "\\x${size:0:2}\\x${size:2:2}\\x${size:4:2}\\x${size:6:2}"
		cat "$body.request"
	} | curl -s --http2-prior-knowledge --unix-socket "$FRONT_SOCK" -D "$head" -o "$body" \
		-H 'content-type: application/grpc' -H 'te: trailers' --data-binary @- "http://husk/$2/$method" || return 1
	code=$(sed -n 's/^grpc-status: \([0-9]*\).*/\1/p' "$head")
	if [[ $code != 0 ]]; then
		echo "$code $(sed -n 's/^grpc-message: //p' "$head")"
		return 1
	fi
	tail -c +6 "$body" | protoc -I "$dir" --decode="$package.${method}Response" "$dir"/*.proto
}

image_rpc() { rpc "$HUSK_TMP/proto" runtime.v1.ImageService "$@"; }
husk_rpc() { rpc "$HUSK_ROOT/pkg/api/husk/v1" husk.v1.ImageService "$@"; }

# list_images SPEC: the IDs of the images that a ListImages with that filter shows, each with its handler.
list_images() {
	image_rpc ListImages "filter { image { $1 } }" | awk -F '"' '
		/^images/ { id = handler = "" }
		/^  id:/ { id = $2 }
		/^    runtime_handler:/ { handler = $2 }
		/^}/ { print handler "/" id }' | sort
}

# ---- ResolveImage ----

@test "resolve: every kind of name finds the record, as JSON with all that is known of it" {
	local name want
	image named --user 1000:1000
	guest_pull "$REF"
	want=$(jq -ncS --arg id "$ID" --arg ref "$REF" --arg pinned "$PINNED" --arg m "$MANIFEST" --argjson h "$GUESTS" \
		--argjson bytes "$(skopeo inspect --raw --tls-verify=false "docker://$REF" | jq '[.layers[].size] | add')" \
		--argjson stored "$(husk images --format json | jq --arg id "$ID" '.[] | select(.image_id == $id).stored_bytes')" \
		'[{image_id: $id, references: [$pinned, $ref], manifest_digest: $m, index_digests: [], platform: "linux/amd64",
			layers: 2, encrypted_layers: 0, layer_bytes: $bytes, stored_bytes: $stored, user: "1000:1000",
			runtime_handlers: $h, held_by: "husk"}]')
	for name in "$REF" front-short:1 "front-short@$MANIFEST" "$PINNED" "$ID" "sha256:$ID" "${ID:0:12}" "${ID:0:3}"; do
		assert_eq "$(husk resolve --format json "$name" | jq -cS 'map(del(.pulled_at))')" "$want" "resolve $name"
	done
}

@test "resolve: as text, and by a template" {
	image texted --user web
	guest_pull "$REF"
	run -0 husk resolve "$REF"
	assert_eq "$(sed -n 's/^image ID: *//p' <<<"$output")" "$ID"
	assert_eq "$(sed -n 's/^references: *//p' <<<"$output")" "$PINNED"
	assert_eq "$(sed -n 's/^held by: *//p' <<<"$output")" husk
	assert_eq "$(sed -n 's/^handlers: *//p' <<<"$output")" "husk, small, tight"
	assert_contains "$(sed -n 's/^layers: *//p' <<<"$output")" "2 (0 encrypted)"
	assert_eq "$(husk resolve --format '{{.ImageID}} {{.User}}' "$REF")" "$ID web"
}

@test "resolve: CRI-O's image and the record under one ID, CRI-O's first" {
	local name found
	image both --user 1000
	guest_pull "$REF"
	full_pull "$REF"
	for name in "$REF" "$PINNED" "$ID" "${ID:0:12}"; do
		found=$(husk resolve --format json "$name")
		assert_eq "$(jq -c '[.[] | [.held_by, .image_id, .runtime_handlers]]' <<<"$found")" \
			"$(jq -nc --arg id "$ID" --argjson h "$GUESTS" '[["cri-o", $id, []], ["husk", $id, $h]]')" "$name"
		assert_eq "$(husk resolve --format json --runtime-handler small "$name" | jq -c '[.[].held_by]')" '["husk"]'
		assert_eq "$(husk resolve --format json --runtime-handler runc "$name" | jq -c '[.[].held_by]')" '["cri-o"]'
	done
	found=$(husk_rpc ResolveImage "image: \"$REF\"")
	assert_eq "$(sed -n 's/^  source: //p' <<<"$found")" $'SOURCE_CRIO\nSOURCE_RECORD'
	assert_eq "$(sed -n 's/^  runtime_handlers: //p' <<<"$found")" $'"husk"\n"small"\n"tight"'
}

@test "resolve: an encrypted image and its plain twin, the last pulled first" {
	local counts='[.[] | [.layers, .encrypted_layers, .manifest_digest]]' plain sealed
	"$HUSK_BIN_DIR/mkimage" keygen "$HUSK_TMP/tmp/twin" >/dev/null
	image twin
	plain=$MANIFEST
	guest_pull "$REF"
	REF=$(push_image twin:sealed --layer /data=twin --encrypt-key "$HUSK_TMP/tmp/twin/public.pem")
	sealed=$(summary twin-sealed .digest)
	guest_pull "$REF"
	assert_eq "$(husk resolve --format json "$ID" | jq -c "$counts")" "[[2,2,\"$sealed\"],[2,0,\"$plain\"]]"
	assert_eq "$(husk resolve --format json "$REF" | jq -c "$counts")" "[[2,2,\"$sealed\"]]"
	guest_pull "$REGISTRY/twin:1"
	assert_eq "$(husk resolve --format json "$ID" | jq -c '[.[].encrypted_layers]')" '[0,2]'
}

@test "resolve: what is not there is exit 3, a husk that is not there exit 5" {
	local name record
	image gone
	for name in "$REF" "$PINNED" "$ID" "${ID:0:12}" front-short:none; do
		run -3 husk resolve "$name"
		assert_contains "$output" "$name"
	done
	guest_pull "$REF"
	run -3 husk resolve --runtime-handler runc "$REF"
	run -1 husk resolve --runtime-handler moon "$REF"
	assert_contains "$output" moon
	record=$(husk inspect "$REF" | jq -er '.[0].storage_id')
	run -3 husk resolve "$record" # no client learns storage IDs
	sed "s|^listen = .*|listen = \"$HUSK_TMP/nobody.sock\"|" "$HUSK_TMP/husk.toml" >"$HUSK_TMP/nobody.toml"
	run -5 "$HUSK_BIN_DIR/husk" --config "$HUSK_TMP/nobody.toml" resolve "$REF"
	assert_contains "$output" "$HUSK_TMP/nobody.sock"
	sed "s|^listen = .*|listen = \"$BACKEND_SOCK\"|; /^backend/d" "$HUSK_TMP/husk.toml" >"$HUSK_TMP/nobody.toml"
	run -5 "$HUSK_BIN_DIR/husk" --config "$HUSK_TMP/nobody.toml" resolve "$REF"
	assert_contains "$output" "no husk"
}

# ---- KEP-4216: runtime_handler in the calls about images ----

@test "PullImage: runtime_handler decides, not the pod" {
	local mark
	image handled
	mark=$(log_mark)
	pull_image "$REF" plain --runtime-handler husk
	# shellcheck disable=SC2046
	assert_eq "$(blob_requests "$mark" "" $(layer_digests "$REF"))" 0 "layers read"
	assert_eq "$(held "$ID")" $'[]\n'"[\"$REF\"]"
	husk rm "$REF"
	pull_image "$REF" guest --runtime-handler runc
	assert_eq "$(held "$ID")" "[\"$REF\"]"$'\n[]'
}

@test "ImageStatus: each handler sees what its pods can start from" {
	local name seen='.status | [.id, .uid.value, .spec.runtimeHandler]'
	image seen --user 1000
	guest_pull "$REF"
	for name in "$REF" "$ID" "$PINNED"; do
		run ! cri inspecti --runtime-handler runc "$name"
		assert_contains "$output" "no such image"
		assert_eq "$(cri inspecti --runtime-handler tight "$name" | jq -c "$seen")" "[\"$ID\",\"1000\",\"tight\"]"
	done
	full_pull "$REF"
	husk rm "$REF"
	for name in "$REF" "$ID" "$PINNED"; do
		run ! cri inspecti --runtime-handler tight "$name"
		assert_contains "$output" "no such image"
		assert_eq "$(cri inspecti --runtime-handler runc "$name" | jq -cS .)" "$(stock inspecti "$name" | jq -cS .)"
	done
}

@test "ListImages: the filter's runtime_handler" {
	local records full
	image listed
	guest_pull "$REF"
	image listed-full
	full_pull "$REF"
	records=$(husk images --format json | jq -r '.[] | "small/\(.image_id)"' | sort)
	full=$(comm -23 <(stock images -q | sort) <(husk images --format json | jq -r '.[].storage_id' | sort) | sed 's|^|/|')
	assert_contains "$full" "/$ID"
	assert_eq "$(list_images 'runtime_handler: "small"')" "$records"
	assert_eq "$(list_images 'runtime_handler: "runc"')" "$full"
	assert_eq "$(list_images "image: \"$REF\" runtime_handler: \"runc\"")" "/$ID"
	assert_eq "$(list_images "image: \"$REF\" runtime_handler: \"small\"")" ""
	assert_eq "$(list_images "image: \"$REGISTRY/listed:1\" runtime_handler: \"small\"")" "small/$(summary listed-1 '.instances[0].configDigest[7:]')"
	assert_eq "$(list_images "image: \"$REGISTRY/listed:1\" runtime_handler: \"runc\"")" ""
}

@test "RemoveImage: with a handler that one's image, and no other" {
	local name
	image dropped
	for name in "$REF" "$ID"; do
		guest_pull "$REF"
		full_pull "$REF"
		cri rmi --runtime-handler husk "$name"
		assert_eq "$(held "$ID")" "[\"$REF\"]"$'\n[]' "after $name for husk"
		guest_pull "$REF"
		cri rmi --runtime-handler runc "$name"
		assert_eq "$(held "$ID")" $'[]\n'"[\"$REF\"]" "after $name for runc"
	done
}

@test "an unknown runtime handler is refused everywhere, and nothing happens" {
	local mark spec call
	image moon
	guest_pull "$REF"
	full_pull "$REF"
	mark=$(log_mark)
	BEFORE=$(everything)
	for spec in "runtime_handler: \"moon\"" "annotations { key: \"husk.dev/runtime-handler\" value: \"moon\" }"; do
		spec="image { image: \"$REF\" $spec }"
		for call in "PullImage $spec" "ImageStatus $spec" "ListImages filter { $spec }" "StreamImages filter { $spec }" "RemoveImage $spec"; do
			run ! image_rpc "${call%% *}" "${call#* }"
			assert_contains "$output" "3 find runtime handler: CRI-O's configuration has no runtime handler \"moon\""
		done
	done
	run ! husk_rpc ResolveImage "image: \"$REF\" runtime_handler: \"moon\""
	assert_contains "$output" "3 find runtime handler"
	assert_eq "$(everything)" "$BEFORE"
	assert_eq "$(log_since "$mark" | wc -l)" 0 "requests to the registry"
}

# ---- RemoveImage ----

# twice_named NAME: an image that CRI-O and husk hold, each under two names.
twice_named() {
	local name
	image "$1"
	also_as "$REGISTRY/$1:2"
	for name in "$REF" "$REGISTRY/$1:2"; do
		guest_pull "$name"
		full_pull "$name"
	done
	BOTH="[\"$REF\",\"$REGISTRY/$1:2\"]"
	assert_eq "$(held "$ID")" "$BOTH"$'\n'"$BOTH"
}

@test "remove by ID while a guest-pull container uses it: refused, and all names stay" {
	local ctr
	twice_named guest-used
	ctr=$(create_ctr "$GUEST" guest guest-used "$ID=$REF" -- "${SLEEP[@]}")
	BEFORE=$(everything)
	refused "code = FailedPrecondition" cri rmi "$ID"
	refused "code = FailedPrecondition" cri rmi --runtime-handler husk "$ID"
	refused "$ctr" cri rmi "${ID:0:12}"
	crictl rm "$ctr"
	cri rmi "$ID"
	assert_eq "$(held "$ID")" $'[]\n[]'
}

@test "remove by ID while an ordinary container uses it: refused, and all names stay" {
	local ctr
	twice_named plain-used
	ctr=$(create_ctr "$PLAIN" plain plain-used "$ID=$REF" -- "${SLEEP[@]}")
	BEFORE=$(everything)
	refused "in use" cri rmi "$ID"
	refused "in use" cri rmi "${ID:0:12}"
	crictl rm "$ctr"
	cri rmi "$ID"
	assert_eq "$(held "$ID")" $'[]\n[]'
}

@test "remove by reference: that name alone, CRI-O's before husk's" {
	twice_named named-one
	cri rmi "$REF"
	assert_eq "$(held "$ID")" "[\"$REGISTRY/named-one:2\"]"$'\n'"$BOTH"
	cri rmi "$REF"
	assert_eq "$(held "$ID")" "[\"$REGISTRY/named-one:2\"]"$'\n'"[\"$REGISTRY/named-one:2\"]"
	cri rmi "$REGISTRY/named-one:2"
	assert_eq "$(held "$ID")" $'[]\n'"[\"$REGISTRY/named-one:2\"]"
	cri rmi "$REGISTRY/named-one:2"
	assert_eq "$(held "$ID")" $'[]\n[]'
	run ! cri inspecti "$ID"
}

@test "the beginning of an ID names a record, for people with crictl" {
	image abbreviated
	guest_pull "$REF"
	assert_eq "$(cri inspecti "${ID:0:13}" | jq -r '.status.spec.runtimeHandler + .status.id')" "husk$ID"
	cri rmi "${ID:0:13}"
	assert_eq "$(held "$ID")" $'[]\n[]'
	# Of what nobody has, stock CRI-O's words.
	run ! cri inspecti "${ID:0:13}"
	assert_eq "$output" "$(stock inspecti "${ID:0:13}" 2>&1)"
}

# ---- what a pod may not say of itself ----

# claims prints jq programs, each of which makes a pod or a container say what only CRI-O or husk may say.
claims() {
	local key
	for key in SandboxID ContainerType ImageName Image ResolvPath RuntimeHandler IP.0; do
		printf '.annotations = {"io.kubernetes.cri-o.%s": "sandbox"}\n.labels = {"io.kubernetes.cri-o.%s": "sandbox"}\n' "$key" "$key"
	done
	printf '.%s = {"husk.dev/image-ref": "registry.local/other@sha256:0"}\n' annotations labels
}

@test "forged keys on a guest-pull pod: no pod" {
	local claim
	BEFORE=$(everything)
	while read -r claim; do
		run ! run_pod forged husk "$claim"
		assert_contains "$output" "code = InvalidArgument"
		assert_contains "$output" "must not set"
	done < <(claims)
	assert_eq "$(everything)" "$BEFORE"
}

@test "forged keys on a container of a guest-pull pod: no container" {
	local claim
	image forged
	guest_pull "$REF"
	BEFORE=$(everything)
	while read -r claim; do
		run ! create_ctr "$GUEST" guest forged "$ID=$REF" "$claim" -- "${SLEEP[@]}"
		assert_contains "$output" "code = InvalidArgument"
		assert_contains "$output" "must not set"
	done < <(claims)
	assert_eq "$(everything)" "$BEFORE"
	create_ctr "$GUEST" guest forged "$ID=$REF" '.annotations = {"io.kubernetes.cri-o.umask": "022"}' -- "${SLEEP[@]}" # what a pod may say
}

# forged_outcome CLIENT: what becomes of an ordinary pod and its container that claim what a guest-pull pod must not.
forged_outcome() {
	local pod ctr file pod_file claim
	claim='{"io.kubernetes.cri-o.SandboxID": "x", "io.kubernetes.cri-o.ContainerType": "sandbox", "io.kubernetes.cri-o.ImageName": "registry.local/other:1"}'
	pod_file=$(pod_json claims ".annotations = $claim | .labels = {\"io.kubernetes.cri-o.ImageName\": \"y\"}")
	pod=$("$1" runp -r runc "$pod_file") || return 1
	"$1" pull --pod-config "$pod_file" "$BUSYBOX" || return 1
	file=$(ctr_json claims "$BUSYBOX" ".annotations = $claim | .labels = {\"io.kubernetes.cri-o.SandboxID\": \"z\"}" -- "${SLEEP[@]}")
	ctr=$("$1" create "$pod" "$file" "$pod_file") || return 1
	"$1" start "$ctr" >/dev/null || return 1
	"$1" exec -s "$ctr" hostname
	"$1" inspectp "$pod" | jq -cS '.status | del(.id, .createdAt, .network)'
	"$1" inspect "$ctr" | jq -cS '.status | del(.id, .createdAt, .startedAt, .logPath)'
	"$1" rmp -f "$pod" >/dev/null
	"$1" pods -q --id "$pod"
}

@test "forged keys on an ordinary pod and its container: as on stock CRI-O" {
	local got want
	got=$(forged_outcome cri)
	want=$(forged_outcome stock)
	assert_eq "$got" "$want"
	assert_contains "$got" '"state":"CONTAINER_RUNNING"'
	# Husk's own keys are read in the status of every container.
	BEFORE=$(everything)
	refused "code = InvalidArgument" create_ctr "$PLAIN" plain claims "$BUSYBOX" '.annotations = {"husk.dev/image-ref": "x"}' -- "${SLEEP[@]}"
}

# ---- image volumes ----

# volume IMAGE prints the jq program that mounts an image; the pod says REF.
volume() { printf '.mounts = [{container_path: "/v", readonly: true, image: {image: "%s", user_specified_image: "%s"}}]' "$1" "$REF"; }

@test "an image volume without layers is refused in an ordinary container" {
	local name
	image volume-record
	guest_pull "$REF"
	BEFORE=$(everything)
	for name in "$REF" "$PINNED" "$ID" "${ID:0:12}"; do
		refused "code = NotFound" create_ctr "$PLAIN" plain v "$BUSYBOX" "$(volume "$name")" -- "${SLEEP[@]}"
		assert_contains "$output" "no layers"
		assert_contains "$output" "$name"
	done
}

@test "an image volume of a guest-pull container is refused, and says so" {
	local name
	image volume-guest
	guest_pull "$REF"
	BEFORE=$(everything)
	for name in "$REF" "$ID" "$BUSYBOX" "$REGISTRY/none:1"; do
		refused "code = Unimplemented" create_ctr "$GUEST" guest v "$ID=$REF" "$(volume "$name")" -- "${SLEEP[@]}"
		assert_contains "$output" "image volumes"
		assert_contains "$output" "$name"
	done
}

# volume_outcome CLIENT IMAGE: what becomes of an ordinary container with an image volume.
volume_outcome() {
	local ctr file
	file=$(ctr_json "volume-$1" "$BUSYBOX" "$(volume "$2")" -- "${SLEEP[@]}")
	ctr=$("$1" create "$PLAIN" "$file" "$HUSK_TMP/tmp/plain-pod.json" 2>&1) || {
		echo "$ctr"
		return 0
	}
	"$1" start "$ctr" 2>&1 | sed "s/$ctr/ID/g"
	"$1" exec -s "$ctr" cat /v/data 2>&1
	"$1" inspect "$ctr" | jq -cS '.status.mounts'
	"$1" rm -f "$ctr" >/dev/null
}

@test "an image volume of an ordinary container: as on stock CRI-O" {
	local name
	image volume-full
	full_pull "$REF"
	for name in "$REF" "$ID" "$REGISTRY/none:1"; do
		assert_eq "$(volume_outcome cri "$name")" "$(volume_outcome stock "$name")" "volume $name"
	done
	assert_contains "$(volume_outcome cri "$REF")" volume-full
}

# ---- limits ----

@test "max_layers and max_image_size of a handler hold at CreateContainer too" {
	local pod handler
	image limited --layer /second=2 # three layers
	guest_pull "$REF"               # for a handler without limits
	for handler in small tight; do
		pod=$(run_pod "limited-$handler" "$handler")
		BEFORE=$(everything)
		refused "code = ResourceExhausted" create_ctr "$pod" "limited-$handler" c "$ID=$REF" -- "${SLEEP[@]}"
		case $handler in
		small) assert_contains "$output" "has 3 layers, and runtime handler \"small\" allows 2" ;;
		tight) assert_contains "$output" "runtime handler \"tight\" allows 65536" ;;
		esac
		crictl rmp -f "$pod"
	done
	create_ctr "$GUEST" guest limited "$ID=$REF" -- "${SLEEP[@]}"
}

@test "max_layers holds for a record that is made from CRI-O's image" {
	local pod
	image derived --layer /second=2
	full_pull "$REF"
	pod=$(run_pod derived small)
	run ! create_ctr "$pod" derived c "$ID=$REF" -- "${SLEEP[@]}"
	assert_contains "$output" "code = ResourceExhausted"
	assert_eq "$(cri ps -a -q --pod "$pod")" ""
	crictl rmp -f "$pod"
}

# ---- long streams ----

# stream FILE SOCKET: the container events of a socket, into a file, until the test ends.
stream() {
	"$HUSK_BIN_DIR/crictl" -r "unix://$2" events >"$BATS_TEST_TMPDIR/$1" 3>&- &
	STREAMS+=($!)
}

# event FILE CONTAINER TYPE: the file has it.
event() { jq -es --arg id "$2" --arg t "$3" 'any(.[]; .containerId == $id and .containerEventType == $t)' "$BATS_TEST_TMPDIR/$1"; }

# primed: both streams deliver; a client is told nothing of what was before it.
primed() {
	local ctr
	ctr=$(create_ctr "$PLAIN" plain prime "$BUSYBOX" '.labels = {"io.kubernetes.pod.uid": "plain-uid"}' -- "${SLEEP[@]}") || return 1
	crictl rm "$ctr"
	event front "$ctr" CONTAINER_DELETED_EVENT && event stock "$ctr" CONTAINER_DELETED_EVENT
}

@test "a stream of events goes on between calls, is CRI-O's, and names the true image" {
	local ctr type i calls client made=()
	STREAMS=()
	stream front "$FRONT_SOCK"
	stream stock "$BACKEND_SOCK"
	eventually 10 primed
	image streamed
	for i in 1 2; do # the second time the stream is no longer young
		pull_image "$REF" guest
		{ cri ps -a && cri images && cri pods && cri version; } >/dev/null &
		calls=$!
		ctr=$(create_ctr "$GUEST" guest "streamed-$i" "$ID=$REF" '.labels = {"io.kubernetes.pod.uid": "guest-uid"}' -- "${SLEEP[@]}")
		made+=("$ctr")
		crictl start "$ctr"
		eventually 5 event front "$ctr" CONTAINER_STARTED_EVENT # while it runs, not when the stream ends
		crictl rm -f "$ctr"
		for type in CREATED STARTED STOPPED DELETED; do
			eventually 5 event front "$ctr" "CONTAINER_${type}_EVENT"
			eventually 5 event stock "$ctr" "CONTAINER_${type}_EVENT"
		done
		wait "$calls"
	done
	jq -se --arg ctr "$ctr" --arg ref "$REF" --arg pinned "$PINNED" --arg id "$ID" '[.[].containersStatuses[]? | select(.id == $ctr)] |
		length >= 2 and all(.[]; .image.image == $ref and .imageRef == $pinned and .imageId == $id)' "$BATS_TEST_TMPDIR/front"
	# Whom a guest-pull container runs as only its pod knows; CRI-O says 0.
	# shellcheck disable=SC2016
	local same='[.[] | select(.containerId | IN($ARGS.positional[])) | del(.containersStatuses[]? | .image, .imageRef, .imageId, .user)]'
	assert_eq "$(jq -csS "$same" "$BATS_TEST_TMPDIR/front" --args "${made[@]}")" \
		"$(jq -csS "$same" "$BATS_TEST_TMPDIR/stock" --args "${made[@]}")" "the rest of the events"
	for client in "${STREAMS[@]}"; do kill -0 "$client"; done # neither has ended
}

# ---- what is CRI-O's own ----

@test "ImageFsInfo, Version and Status are CRI-O's answers" {
	# CRI-O answers some lists in the order of a Go map.
	local no_order='.info.config |= fromjson | walk(if type == "array" then sort_by(tostring) else . end)'
	local no_time='walk(if type == "object" then del(.timestamp) else . end)'
	assert_eq "$(cri version)" "$(stock version)"
	assert_eq "$(cri info | jq -cS "$no_order")" "$(stock info | jq -cS "$no_order")"
	assert_eq "$(cri info | jq -r '.status.conditions[] | select(.type == "RuntimeReady").status')" true
	assert_eq "$(cri imagefsinfo | jq -cS "$no_time")" "$(stock imagefsinfo | jq -cS "$no_time")"
	assert_contains "$(cri imagefsinfo)" "$CRIO_ROOT"
}

# ---- nested indexes ----

@test "an index in an index: runs, and every report says the outer digest" {
	local inner outer=$BATS_TEST_TMPDIR/outer.json digest ctr image instance pinned
	REF=$(push_image nested:inner --layer /data=nested --index linux/amd64,linux/arm64)
	inner=$(summary nested-inner .digest)
	instance=$(summary nested-inner '.instances[] | select(.platform == "linux/amd64").manifestDigest')
	jq -nc --arg d "$inner" --argjson size "$(skopeo inspect --raw --tls-verify=false "docker://$REF" | wc -c)" '{schemaVersion: 2,
		mediaType: "application/vnd.oci.image.index.v1+json",
		manifests: [{mediaType: "application/vnd.oci.image.index.v1+json", digest: $d, size: $size}]}' | tr -d '\n' >"$outer"
	digest=sha256:$(sha256sum <"$outer" | cut -d ' ' -f 1)
	curl -sf -X PUT -H 'Content-Type: application/vnd.oci.image.index.v1+json' --data-binary @"$outer" "http://$REGISTRY/v2/nested/manifests/outer"
	REF=$REGISTRY/nested:outer pinned=$REGISTRY/nested@$digest
	image=$(pull_image "$REF" guest)
	ctr=$(run_ctr "$GUEST" guest nested "$image=$REF" -- "${SLEEP[@]}")
	assert_eq "$(crictl exec -s "$ctr" cat /data)" nested
	assert_eq "$(ctr_status "$ctr" '[.image.image, .imageRef, .imageId] | join(" ")')" "$REF $pinned $image"
	cri images -o json | jq -e --arg id "$image" --arg outer "$pinned" --arg inst "$REGISTRY/nested@$instance" \
		'.images[] | select(.id == $id).repoDigests | index($outer) != null and index($inst) != null'
	assert_eq "$(husk resolve --format json "$pinned" | jq -c '.[0] | [.manifest_digest, .index_digests]')" \
		"[\"$instance\",[\"$digest\",\"$inner\"]]"
}
