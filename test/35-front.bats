#!/usr/bin/env bats
# Whose images a client sees on a real CRI-O: what a name stands for, by handler, and what a removal removes.

# shellcheck disable=SC2030,SC2031,SC2153 # each test is a subshell; front.bash sets GUEST, REF and more in the test's own
load helpers
load front

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
