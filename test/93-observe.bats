#!/usr/bin/env bats
# What an operator sees of husk from outside: metrics that agree with the registry's log, traces joined with CRI-O's,
# cAdvisor's HTTP on the CRI socket, and container events.

load helpers
load operate

readonly PASSWORD=pa55word-of-observe WRONG=wr0ng-of-observe

setup_file() {
	node_up --auth "alice:$PASSWORD"
	credential alice "$WRONG"
	collector_build
	testnode start --dir "$NODE_DIR" collector "$COLLECTOR" collect --spans "$NODE_DIR/log/spans.jsonl"
	eventually 10 test -s "$NODE_DIR/log/collector.out"
	cat >"$NODE_DIR/conf/crio.conf.d/60-tracing.conf" <<-TOML
		[crio.tracing]
		enable_tracing = true
		tracing_endpoint = "$(cat "$NODE_DIR/log/collector.out")"
		tracing_sampling_rate_per_million = 1000000
	TOML
	crio_restart
	REF=$(push_image app:1 --layer /a=one --layer-random 100KiB --cmd /bin/sh --cmd -c --cmd "${SLEEP[2]}")
	IMAGE_ID=$(jq -r '.instances[0].configDigest | ltrimstr("sha256:")' "$HUSK_TMP/tmp/app-1.json")
	LAYER_BYTES=$(jq -r '.instances[0].layerBytes' "$HUSK_TMP/tmp/app-1.json")
	skopeo copy -q --insecure-policy --src-tls-verify=false --dest-tls-verify=false --dest-creds "alice:$PASSWORD" \
		"docker://$REF" "docker://$AUTH_REGISTRY/private:1"
	echo '{"default":[{"type":"reject"}]}' >"$NODE_DIR/conf/policies/locked.json"
	export REF IMAGE_ID LAYER_BYTES
}

teardown_file() {
	crio_stop # before the collector, for which its last spans would wait
	nodes_down
}

setup() {
	CURRENT=husk
	export METRICS_URL=http://husk METRICS_SOCKET=$HUSK_TMP/m.sock
	husk_start "metrics_listen = \"unix://$HUSK_TMP/m.sock\""
}

teardown() {
	show_logs_on_failure
	local pod
	[[ -z ${CLIENT:-} ]] || kill "$CLIENT" 2>/dev/null || true
	for pod in $(stock pods -q); do stock rmp -f "$pod"; done
	for pod in $(husk images --format '{{.ImageID}}'); do husk rm "$pod"; done
	testnode stop --dir "$NODE_DIR" "$CURRENT"
}

@test "metrics say what the registry's log says" {
	local mark auth_mark requests bytes pod
	pod=$(run_pod guest husk)
	pod_json locked '.metadata.namespace = "locked"' >/dev/null
	mark=$(log_mark)
	auth_mark=$(log_mark --auth-registry)
	pull_image "$REF" guest
	run ! pull_image "$AUTH_REGISTRY/private:1" guest --creds "alice:$WRONG"
	run ! pull_image "$REGISTRY/busybox:latest" locked --runtime-handler husk
	assert_eq "$(metric 'husk_pulls_total{handler="husk",outcome="ok"}')" 1
	assert_eq "$(metric 'husk_pulls_total{handler="husk",outcome="unauthorized"}')" 1
	assert_eq "$(metric 'husk_pulls_total{handler="husk",outcome="policy-refused"}')" 1
	assert_eq "$(metric 'husk_pull_seconds_count{handler="husk"}')" 3
	assert_eq "$(metric husk_pulls_in_progress)" 0
	# The pod's own requests, for the layers, are not husk's.
	requests=$({ log_since "$mark" && log_since "$auth_mark" --auth-registry; } |
		jq -s --arg ip "$NODE_IP" 'map(select(.remote == $ip)) | length')
	bytes=$({ log_since "$mark" && log_since "$auth_mark" --auth-registry; } | jq -s --arg ip "$NODE_IP" \
		'[.[] | select(.remote == $ip and .status == 200 and (.path | test("/(manifests|blobs)/"))).bytes] | add')
	assert_eq "$(metric husk_pull_registry_requests_total)" "$requests"
	assert_eq "$(metric husk_pull_registry_bytes_total)" "$bytes"
	assert_eq "$(metric husk_layer_bytes_not_read_total)" "$LAYER_BYTES"
	# Nobody pulls layers of what has no metadata.
	assert_eq "$(metric 'husk_layer_pulls_total{handler="husk",outcome="ok"}')" 1
	assert_eq "$(metric 'husk_layer_pull_seconds_count{handler="husk"}')" 1
	assert_eq "$(metric husk_layer_pulls_in_progress)" 0
	assert_eq "$(metric husk_layer_pulled_bytes_total)" "$LAYER_BYTES"
	assert_eq "$(husk images --sandboxes --format '{{.Sandbox}} {{.ImageID}}' | grep "^$pod")" "$pod $IMAGE_ID"
	(($(metric husk_sandboxes) >= 1 && $(metric husk_sandbox_images) >= 1))
	assert_eq "$(metric husk_records)" 1
	assert_eq "$(metric husk_records_bytes)" "$(husk images --format '{{.StoredBytes}}')"
	assert_eq "$(metric "husk_build_info{version=\"$(husk version --format '{{.Version}}')\"}")" 1

	# A second reference to the same record, and a record that is gone.
	pull_image "$AUTH_REGISTRY/private:1" guest --creds "alice:$PASSWORD"
	assert_eq "$(metric 'husk_pulls_total{handler="husk",outcome="ok"}')" 2
	assert_eq "$(metric husk_layer_bytes_not_read_total)" $((2 * LAYER_BYTES))
	husk rm "$IMAGE_ID"
	assert_eq "$(metric husk_records)" 0
}

@test "metrics of forwarded calls have as many labels as there are methods, whatever clients call" {
	local name
	cri version
	for name in a b c; do
		run ! ask "runtime.v1.RuntimeService/Invented$name" '{}'
		run ! ask "evil.$name.Service/Method" '{}'
		assert_contains "$output" "Unimplemented: "
	done
	run ! cri pull --runtime-handler "invented-$RANDOM" "$REF"
	assert_eq "$(metric 'husk_forwarded_calls_total{code="Unimplemented",method="other"}')" 6
	[[ $(metric 'husk_forwarded_calls_total{code="OK",method="runtime.v1.RuntimeService/Version"}') -ge 1 ]]
	refute_contains "$(metrics /metrics)" nvented
	refute_contains "$(metrics /metrics)" evil
	run ! ask runtime.v1.RuntimeService/ContainerStatus '{"containerId": "none"}'
	assert_eq "$(metric 'husk_forwarded_calls_total{code="NotFound",method="runtime.v1.RuntimeService/ContainerStatus"}')" 1
}

# pulled prints how many pulls the husk that serves the metrics has counted.
pulled() { metric 'husk_pulls_total{handler="husk",outcome="ok"}'; }

@test "metrics on a socket: for root and its group alone, and passed to the husk that takes over" {
	assert_eq "$(stat -c %a "$HUSK_TMP/m.sock")" 660
	assert_eq "$(metrics /healthz)" ok
	run ! metrics /metrics -X POST
	pull_image "$REF" --runtime-handler husk
	assert_eq "$(pulled)" 1
	husk_replace by-socket # waits until the one before is gone
	assert_eq "$(pulled)" 0 "what the new husk has counted"
	pull_image "$REF" --runtime-handler husk
	assert_eq "$(pulled)" 1
	testnode stop --dir "$NODE_DIR" "$CURRENT"
	run ! metrics /healthz
}

@test "metrics on the loopback: at no other address, and passed to the husk that takes over" {
	local port=$((20000 + RANDOM % 10000))
	husk_stop
	export METRICS_URL=http://127.0.0.1:$port METRICS_SOCKET=
	husk_start "metrics_listen = \"127.0.0.1:$port\""
	eventually 5 pulled
	pull_image "$REF" --runtime-handler husk
	assert_eq "$(pulled)" 1
	run ! curl -sf "http://$NODE_IP:$port/metrics"
	husk_replace by-port
	eventually 10 pulled
	assert_eq "$(pulled)" 0 "what the new husk has counted"
}

# span JQ: the spans that the filter selects, one JSON object a line.
span() { jq -c "select($1) | del(.raw)" "$NODE_DIR/log/spans.jsonl"; }

has_span() { [[ -n $(span "$1") ]]; }

@test "traces: kubelet's span, husk's and CRI-O's are one trace, without a credential" {
	local trace parent=00f067aa0ba902b7 pod request id call pull
	trace=$(tr -d - </proc/sys/kernel/random/uuid)
	id=$(run_pod guest husk)
	pod=$HUSK_TMP/tmp/guest-pod.json
	request=$(jq -n --arg r "$REF" --arg p "$PASSWORD" --slurpfile pod "$pod" \
		'{image: {image: $r}, auth: {username: "alice", password: $p}, sandboxConfig: $pod[0]}')
	ask runtime.v1.ImageService/PullImage "$request" --traceparent "00-$trace-$parent-01" | grep -F "$IMAGE_ID"
	request=$(jq -n --arg pod "$id" --slurpfile c "$(ctr_json c "$IMAGE_ID=$REF")" --slurpfile p "$pod" \
		'{podSandboxId: $pod, config: $c[0], sandboxConfig: $p[0]}')
	ask runtime.v1.RuntimeService/CreateContainer "$request" --traceparent "00-$trace-$parent-01"
	pull_image "$AUTH_REGISTRY/private:1" guest --creds "alice:$PASSWORD"
	run ! pull_image "$AUTH_REGISTRY/private:1" guest --creds "alice:$WRONG"
	husk_stop # it sends what is left

	# client -> husk -> its pull
	call=$(span ".trace == \"$trace\" and .service == \"husk\" and .name == \"runtime.v1.ImageService/PullImage\"")
	assert_eq "$(jq -r .parent <<<"$call")" "$parent"
	pull=$(span ".trace == \"$trace\" and .parent == $(jq .span <<<"$call") and .service == \"husk\" and .name == \"pull image metadata\"")
	assert_eq "$(jq -r '.attributes["husk.image"]' <<<"$pull")" "$REF"
	assert_eq "$(jq -r '.attributes["husk.registry.requests"]' <<<"$pull")" 3
	pull=$(span ".trace == \"$trace\" and .parent == $(jq .span <<<"$call") and .name == \"pull image layers\"")
	assert_eq "$(jq -r '.attributes["husk.sandbox"]' <<<"$pull")" "$id"
	assert_contains "$(jq -r '.attributes["husk.image"]' <<<"$pull")" "@sha256:"
	assert_eq "$(jq '.attributes | has("husk.layers.bytes") and (has("husk.error.kind") | not)' <<<"$pull")" true
	# client -> husk -> CRI-O, whose span is sent within 5 seconds
	call=$(span ".trace == \"$trace\" and .service == \"husk\" and .name == \"runtime.v1.RuntimeService/CreateContainer\"")
	assert_eq "$(jq -r .parent <<<"$call")" "$parent"
	eventually 15 has_span ".trace == \"$trace\" and .service == \"crio\" and .parent == $(jq .span <<<"$call")
		and .name == \"runtime.v1.RuntimeService/CreateContainer\""
	# A call that nobody traces is sampled as CRI-O samples; its failure has a kind and no text.
	has_span '.service == "husk" and .name == "pull image metadata" and .attributes["husk.error.kind"] == "unauthorized"'
	refute_in_logs "$PASSWORD" # the file of the spans among them
	refute_in_logs "$WRONG"
	refute_in_logs "$(printf 'alice:%s' "$PASSWORD" | base64 -w0)"
	assert_contains "$(cat "$NODE_DIR/log/husk.log")" "trace_id=$trace"
}

# web SOCKET PATH: an HTTP answer's body.
web() { curl -sf -m 10 --unix-socket "$1" "http://crio$2"; }

@test "HTTP on the CRI socket: CRI-O's answers, with a guest-pull container's true image" {
	local pod plain guest image crio pinned
	crictl pull "$REGISTRY/busybox:latest"
	pod=$(run_pod plain runc)
	plain=$(run_ctr "$pod" plain c "$REGISTRY/busybox:latest" -- "${SLEEP[@]}")
	pod=$(run_pod guest husk)
	image=$(pull_image "$REF" guest)
	guest=$(run_ctr "$pod" guest c "$image=$REF")
	pinned=$REGISTRY/app@$(jq -r .digest "$HUSK_TMP/tmp/app-1.json")

	assert_eq "$(web "$FRONT_SOCK" /info)" "$(web "$BACKEND_SOCK" /info)"
	assert_eq "$(web "$FRONT_SOCK" /config)" "$(web "$BACKEND_SOCK" /config)"
	assert_eq "$(web "$FRONT_SOCK" "/containers/$plain" | jq -S .)" "$(web "$BACKEND_SOCK" "/containers/$plain" | jq -S .)"
	assert_eq "$(web "$FRONT_SOCK" "/containers/$guest" | jq -r '[.image, .image_ref] | @tsv')" "$REF"$'\t'"$pinned"
	refute_contains "$(web "$BACKEND_SOCK" "/containers/$guest" | jq -r '[.image, .image_ref] | @tsv')" "$pinned"
	assert_eq "$(web "$FRONT_SOCK" "/containers/$guest" | jq -S 'del(.image, .image_ref)')" \
		"$(web "$BACKEND_SOCK" "/containers/$guest" | jq -S 'del(.image, .image_ref)')"
	assert_eq "$(ctr_status "$guest" '.image.image + " " + .imageRef + " " + .imageId')" "$REF $pinned $IMAGE_ID"
	assert_eq "$(curl -s -o /dev/null -w '%{http_code}' --unix-socket "$FRONT_SOCK" http://crio/containers/none)" 404

	run curl -sv -m 10 --unix-socket "$FRONT_SOCK" "http://crio/containers/$guest" http://crio/info
	assert_contains "$output" "Re-using existing connection"
	assert_contains "$output" storage_driver
	crio=$(jq -er '.daemons.crio.argv[0]' "$NODE_DIR/node.json")
	assert_contains "$("$crio" status --socket "$FRONT_SOCK" info 2>/dev/null)" "storage driver: overlay"
	run "$crio" status --socket "$FRONT_SOCK" containers --id "$guest"
	assert_contains "$output" "image: $REF"
	assert_contains "$output" "image ref: $pinned"

	crio_stop
	run curl -s -i -m 10 --unix-socket "$FRONT_SOCK" http://crio/info
	crio_start
	assert_contains "$output" "503 Service Unavailable"
	assert_contains "$output" "CRI-O does not answer on $BACKEND_SOCK"
	eventually 5 web "$FRONT_SOCK" /info
}

# listen FILE: a client of the event stream, which writes what it gets to FILE.
listen() {
	ask runtime.v1.RuntimeService/GetContainerEvents '{}' >"$1" 2>&1 3>&- &
	CLIENT=$!
	# CRI-O says nothing until something happens.
	eventually 10 event_arrives "$1"
}

# event_arrives FILE: makes a pod and ends it; its events are in FILE.
event_arrives() {
	local pod
	pod=$(run_pod "events-$RANDOM" runc) || return 1
	stock rmp -f "$pod" || return 1
	eventually 2 grep -q "$pod" "$1"
}

@test "the event stream: lives through SIGHUP, ends as unavailable at a hand-over, and can be had again" {
	local pid
	listen "$HUSK_TMP/tmp/first"
	husk_reload ok
	event_arrives "$HUSK_TMP/tmp/first"
	kill -0 "$CLIENT"

	pid=$CLIENT
	husk_replace events
	run ! wait "$pid"
	assert_contains "$(tail -1 "$HUSK_TMP/tmp/first")" "Unavailable: "
	listen "$HUSK_TMP/tmp/second"
	kill -0 "$CLIENT"
}
