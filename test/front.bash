#!/usr/bin/env bash
# What 35-front.bats and 36-front.bats share: a node with three guest-pull handlers, images by many names, and calls
# that no client here can say. A file does `load helpers` and `load front`.

# shellcheck disable=SC2034,SC2154 # what is set here is for the tests; output is what bats' run leaves

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
