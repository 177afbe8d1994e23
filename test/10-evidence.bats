#!/usr/bin/env bats
# The main job, and the evidence for it: from the registry's access log, CRI answers and the disk.

load helpers

# evidence KIND: runs the demo, which fails when anything is wrong, and leaves its evidence in a file.
evidence() {
	run -0 "$HUSK_BIN_DIR/demo" --bin "$HUSK_BIN_DIR" --cache "$HUSK_CACHE" --image "$1" \
		--evidence "$BATS_TEST_TMPDIR/evidence.json"
	cat "$BATS_TEST_TMPDIR/evidence.json"
}

# holds JQ: a claim about the evidence.
holds() { jq -e "$1" "$BATS_TEST_TMPDIR/evidence.json" >/dev/null || fail "not so: $1"; }

@test "an encrypted image runs, and the host reads no layer" {
	evidence encrypted
	holds '.baseline_error | contains("missing private key")'
	holds '.image.layers >= 2 and .image.encrypted_layers == .image.layers'
	holds '.host.layer_requests == 0 and (.host.requests | length) > 0 and .host.bytes < 65536'
	holds '.sandbox.layer_requests == .image.layers and .sandbox.pod_ip != ""'
	holds '.container.state == "CONTAINER_RUNNING" and .container.user == "web"'
	holds '.container.image_id == .image.image_id'
	holds '(.container.image_ref | split("@")[1]) == .image.manifest_digest'
	holds '.storage.layers_added == 0 and .storage.host_files_with_secret == 0'
}

@test "a plain image runs, and the host reads no layer" {
	evidence plain
	holds '.baseline_error == "" and .image.encrypted_layers == 0'
	holds '.host.layer_requests == 0 and .sandbox.layer_requests == .image.layers'
	holds '.storage.layers_added == 0 and .storage.host_files_with_secret == 0'
}

@test "an index runs this machine's instance, and status says the index" {
	evidence index
	holds '.host.layer_requests == 0 and .sandbox.layer_requests == .image.layers'
	holds '(.container.image_ref | split("@")[1]) == .image.manifest_digest'
}
