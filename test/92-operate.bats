#!/usr/bin/env bats
# What an operator does on a node: configure husk and reload it, ask its commands, bound what may be pulled, and live
# with a CRI-O that is slow, hung or gone.

load helpers
load operate

setup_file() {
	node_up --auth alice:s3cret-of-operate
	REF=$(push_image app:1 --layer /a=one --layer /b=two --cmd /bin/sh --cmd -c --cmd "${SLEEP[2]}")
	IMAGE_ID=$(jq -r '.instances[0].configDigest | ltrimstr("sha256:")' "$HUSK_TMP/tmp/app-1.json")
	LAYER_BYTES=$(jq -r '.instances[0].layerBytes' "$HUSK_TMP/tmp/app-1.json")
	cp "$NODE_DIR/conf/registries.conf" "$HUSK_TMP/tmp/registries.conf"
	collector_build
	export REF IMAGE_ID LAYER_BYTES
}

teardown_file() { nodes_down; }

setup() {
	LOG_START=$(stat -c %s "$NODE_DIR/log/husk.log" 2>/dev/null || echo 0)
	CURRENT=husk
	DROP_INS=$HUSK_TMP/husk.toml.d
	mkdir -p "$DROP_INS"
	export METRICS_URL=http://husk METRICS_SOCKET=$HUSK_TMP/m.sock
	husk_start "metrics_listen = \"unix://$METRICS_SOCKET\""
}

teardown() {
	show_logs_on_failure
	local pid
	for pid in ${CLIENTS[@]+"${CLIENTS[@]}"}; do kill "$pid" 2>/dev/null || true; done
	for pid in crio registry; do kill -CONT "$(daemon_pid "$pid")" || true; done
	testnode stop --dir "$NODE_DIR" "$CURRENT"
	cp "$HUSK_TMP/tmp/registries.conf" "$NODE_DIR/conf/registries.conf"
	rm -rf "$DROP_INS" "$NODE_DIR"/conf/crio.conf.d/6*
	husk images --format '{{.ImageID}}' | xargs -r -n 1 "$HUSK_BIN_DIR/husk" --config "$HUSK_TMP/husk.toml" rm
}

# husk_log prints what husk has logged in this test.
husk_log() { tail -c "+$((LOG_START + 1))" "$NODE_DIR/log/husk.log"; }

log_says() { husk_log | grep -qF -- "$1"; }

pull_for() { cri pull --runtime-handler "$1" "${@:2}"; }

@test "SIGHUP: a handler that crio.conf got pulls in the guest from then on, and not before" {
	local mark pod ctr image
	sed -n '/^\[crio.runtime.runtimes.husk\]/,/^$/p' "$NODE_DIR/conf/crio.conf" | sed 's/runtimes\.husk\]/runtimes.later]/' \
		>"$NODE_DIR/conf/crio.conf.d/60-later.conf"
	crio_restart
	eventually 15 cri version
	mark=$(log_mark)
	run ! pull_for later "$REF"
	assert_contains "$output" '"later"'
	assert_eq "$(log_since "$mark")" "" "requests for a handler that husk does not know"

	husk_reload ok
	pull_for later "$REF"
	assert_eq "$(metric 'husk_pulls_total{handler="later",outcome="ok"}')" 1
	pod=$(run_pod later later)
	image=$(pull_image "$REF" later)
	assert_eq "$image" "$IMAGE_ID"
	ctr=$(run_ctr "$pod" later c "$image=$REF")
	assert_eq "$(crictl exec -s "$ctr" cat /a)" one
	# shellcheck disable=SC2046
	assert_eq "$(blob_requests "$mark" "$NODE_IP" $(layer_digests "$REF"))" 0
	crictl rmp -f "$pod"
}

@test "SIGHUP: log_level" {
	cri version
	refute_contains "$(husk_log)" level=DEBUG
	echo 'log_level = "debug"' >"$DROP_INS/10-log.toml"
	husk_reload ok
	cri version
	log_says "level=DEBUG msg=forwarded method=/runtime.v1.RuntimeService/Version code=OK"
	echo 'log_level = "error"' >"$DROP_INS/20-log.toml"
	husk_reload ok
	run ! pull_for husk "$REGISTRY/none:1"
	refute_contains "$(husk_log)" "none:1"
}

@test "SIGHUP: pull_timeout" {
	echo 'pull_timeout = "1s"' >"$DROP_INS/10-pull.toml"
	husk_reload ok
	kill -STOP "$(daemon_pid registry)"
	run ! pull_for husk "$REF" # by default in two minutes, or when 30 seconds bring nothing
	kill -CONT "$(daemon_pid registry)"
	assert_contains "$output" "code = DeadlineExceeded"
	assert_contains "$output" "$REF"
	assert_eq "$(metric 'husk_pulls_total{handler="husk",outcome="deadline-exceeded"}')" 1
}

@test "SIGHUP with a broken file: the old settings stay, the log names file and key, the counter counts" {
	local file=$DROP_INS/90-broken.toml content
	echo 'log_level = "debug"' >"$DROP_INS/10-log.toml"
	for content in 'max_pulls = "many"' 'max_pullz = 3' 'record_ttl = "5m"' 'default_handler = "nobody"'; do
		echo "$content" >"$file"
		husk_reload error
		husk_log | grep -F "the one before stays in force" | tail -1 | grep -F "$file" | grep -F "${content%% *}"
	done
	rm "$file"
	file=$NODE_DIR/conf/crio.conf.d/60-broken.conf
	printf '[crio.image]\nglobal_auth_file = 7\n' >"$file"
	husk_reload error
	husk_log | grep -F "the one before stays in force" | tail -1 | grep -F "$file" | grep -F global_auth_file
	assert_eq "$(metric 'husk_config_reloads_total{outcome="error"}')" 5
	assert_eq "$(metric 'husk_config_reloads_total{outcome="ok"}')" 0

	# With one wrong key, what is right elsewhere does not take effect either.
	printf '\n[[registry]]\nlocation = "%s/app"\nblocked = true\n' "$REGISTRY" >>"$NODE_DIR/conf/registries.conf"
	mv "$file" "$HUSK_TMP/tmp/"
	echo 'default_handler = "nobody"' >"$DROP_INS/90-broken.toml"
	husk_reload error
	pull_for husk "$REF"
	refute_contains "$(husk_log)" level=DEBUG
	rm "$DROP_INS/90-broken.toml"
	husk_reload ok
	cri version
	log_says level=DEBUG
	run ! pull_for husk "$REF"
	assert_contains "$output" blocked
}

@test "SIGHUP: registries.conf gets a mirror and a blocked repository" {
	pull_for husk "$REF"
	run ! pull_for husk mirrored.example/app:1
	cat >>"$NODE_DIR/conf/registries.conf" <<-TOML

		[[registry]]
		location = "$REGISTRY/app"
		blocked = true

		[[registry]]
		location = "mirrored.example"
		[[registry.mirror]]
		location = "$REGISTRY/mirror"
		insecure = true
	TOML
	push_layout "$HUSK_TMP/tmp/app-1:latest" mirror/app:1
	pull_for husk "$REF" # not before SIGHUP
	husk_reload ok
	run ! pull_for husk "$REF"
	assert_contains "$output" blocked
	assert_contains "$(pull_for husk mirrored.example/app:1)" "$IMAGE_ID"

	echo '[[registry]' >>"$NODE_DIR/conf/registries.conf"
	husk_reload error
	log_says "$NODE_DIR/conf/registries.conf"
	pull_for husk mirrored.example/app:1 # the settings before
}

@test "SIGHUP: what takes a restart is named, and stays as it was" {
	printf 'metrics_listen = "127.0.0.1:1"\nmax_pulls = 3\n' >"$DROP_INS/10.toml"
	printf '[crio.tracing]\nenable_tracing = true\ntracing_endpoint = "127.0.0.1:1"\n' >"$NODE_DIR/conf/crio.conf.d/60-tracing.conf"
	husk_reload ok
	run husk_log
	assert_contains "$output" "when husk is restarted"
	assert_contains "$output" metrics_listen
	assert_contains "$output" crio.tracing.enable_tracing
	assert_contains "$output" crio.tracing.tracing_endpoint
	refute_contains "$output" max_pulls
}

@test "SIGHUP disturbs no call under way: a pull, an exec and the event stream" {
	local pod ctr pull call events
	crictl pull "$REGISTRY/busybox:latest"
	pod=$(run_pod slow runc)
	ctr=$(run_ctr "$pod" slow slow "$REGISTRY/busybox:latest" -- "${SLEEP[@]}")
	cri events >"$HUSK_TMP/tmp/events" 2>&1 3>&- &
	events=$!
	crictl exec --sync "$ctr" /bin/sh -c 'echo >/begun; while ! [ -e /end ]; do sleep 0.1; done; echo done' \
		>"$HUSK_TMP/tmp/exec" 2>&1 3>&- &
	call=$!
	kill -STOP "$(daemon_pid registry)"
	pull_for husk "$REF" >"$HUSK_TMP/tmp/pull" 2>&1 3>&- &
	pull=$!
	CLIENTS=("$events" "$call" "$pull")
	eventually 20 stock exec --sync "$ctr" /bin/sh -c 'test -e /begun'
	eventually 10 metric_is husk_pulls_in_progress 1

	printf '\n[[registry]]\nlocation = "%s/app"\nblocked = true\n' "$REGISTRY" >>"$NODE_DIR/conf/registries.conf"
	husk_reload ok
	run ! pull_for husk "$REF" # it does not join the one that began before
	assert_contains "$output" blocked
	kill -CONT "$(daemon_pid registry)"
	wait "$pull" || fail "the pull failed: $(cat "$HUSK_TMP/tmp/pull")" # as it began
	stock exec --sync "$ctr" /bin/sh -c 'echo >/end'
	wait "$call" || fail "the exec failed: $(cat "$HUSK_TMP/tmp/exec")"
	assert_contains "$(cat "$HUSK_TMP/tmp/exec")" "done"
	crictl rmp -f "$pod"
	eventually 10 grep -q CONTAINER_STOPPED_EVENT "$HUSK_TMP/tmp/events" || fail "$(cat "$HUSK_TMP/tmp/events")"
	kill -0 "$events"
}

@test "drop-ins are merged in order, and what husk config prints is that configuration" {
	cat >"$DROP_INS/10.toml" <<-TOML
		max_pulls = 7
		record_ttl = "24h"
		[handlers.husk]
		max_layers = 50
		max_image_size = "2GiB"
	TOML
	printf 'max_pulls = 9\n[handlers.husk]\nmax_layers = 60\npin_digest = false\n' >"$DROP_INS/20.toml"
	echo 'max_pulls = 1' >"$DROP_INS/30.toml.bak"
	husk config --format json >"$HUSK_TMP/tmp/merged.json"
	jq -e '[.max_pulls, .record_ttl, .handlers.husk.max_layers, .handlers.husk.max_image_size, .handlers.husk.pin_digest] ==
		[9, "24h", 60, "2GiB", false]' "$HUSK_TMP/tmp/merged.json" || fail "$(cat "$HUSK_TMP/tmp/merged.json")"
	jq -e --arg file "$DROP_INS/20.toml" '.origins["handlers.husk.max_layers"] == $file and (.files | length) == 3' "$HUSK_TMP/tmp/merged.json"

	husk config >"$HUSK_TMP/tmp/printed.toml"
	grep -F "$DROP_INS/20.toml" "$HUSK_TMP/tmp/printed.toml"
	diff <(jq -S 'del(.files, .origins)' "$HUSK_TMP/tmp/merged.json") \
		<("$HUSK_BIN_DIR/husk" --config "$HUSK_TMP/tmp/printed.toml" config --format json | jq -S 'del(.files, .origins)')
	husk_replace printed "$HUSK_TMP/tmp/printed.toml"
	cri version
	pull_for husk "$REF"
}

@test "husk config --check: nothing to say, and what is wrong by file and key" {
	run -0 husk config --check
	assert_eq "$output" ""
	local crio=$NODE_DIR/conf/crio.conf.d/60-broken.conf own=$DROP_INS/10.toml
	cat >"$crio" <<-TOML
		[crio.runtime.runtimes.lost]
		runtime_path = "/no/such/containerd-shim-lost-v2"
		runtime_type = "vm"
		runtime_pull_image = true
		[crio.image]
		signature_policy = "/no/such/policy.json"
	TOML
	printf '[handlers.losst]\nmax_layers = 3\n' >"$own"
	run -1 husk config --check
	assert_contains "$output" "$crio: crio.runtime.runtimes.lost.runtime_path: "
	assert_contains "$output" "$crio: crio.image.signature_policy: "
	assert_contains "$output" "$own: handlers.losst: "
	run -1 --separate-stderr husk config --check --format json
	jq -e --arg file "$own" 'map(select(.file == $file).key) == ["handlers.losst"]' <<<"$output"

	echo 'listn = "/x"' >"$own"
	run -1 husk config --check
	assert_contains "$output" "$own: listn: "
	rm "$own"
	printf '[crio.image\n' >"$crio"
	run -1 husk config --check
	assert_contains "$output" "$crio: "
	assert_contains "$output" "end table name"
	run -1 husk images
	assert_contains "$output" "$crio: "
	rm "$crio"
	echo '[[registry]' >>"$NODE_DIR/conf/registries.conf"
	run -1 husk config --check
	assert_contains "$output" "$NODE_DIR/conf/registries.conf: "
}

@test "husk serve refuses what cannot be meant, and the one that serves goes on" {
	local line
	for line in 'record_ttl = "5m"' 'metrics_listen = "0.0.0.0:9090"' 'metrics_listen = "192.0.2.1:9090"' \
		'metrics_listen = "localhost:9090"' 'max_pulls = -1' 'log_level = "loud"' 'assume_handler = "nobody"'; do
		echo "$line" >"$DROP_INS/10.toml"
		run -1 timeout 10 "$HUSK_BIN_DIR/husk" --config "$HUSK_TMP/husk.toml" serve
		assert_contains "$output" "$DROP_INS/10.toml: ${line%% *}: "
	done
	cri version
	refute_contains "$(husk_log)" "has taken the socket over"
}

@test "the commands, as scripts use them" {
	pull_for husk "$REF"
	assert_eq "$(husk images --format '{{.ImageID}}')" "$IMAGE_ID"
	assert_eq "$(husk images --format '{{range .References}}{{.Reference}} {{end}}{{.Layers}}' | grep -F "$REF ")" "$REF 3"
	assert_eq "$(husk inspect --format '{{.Config.Config.Cmd | json}}' "$REF")" "$(jq -cn --arg c "${SLEEP[2]}" '["/bin/sh", "-c", $c]')"
	assert_eq "$(husk inspect "${IMAGE_ID:0:12}" | jq -r '.[0].image_id')" "$IMAGE_ID"
	husk version --format json | jq -e '.version | test("^[0-9]+\\.[0-9]+\\.[0-9]+")'
	assert_eq "$(husk version --format '{{.Version}}')" "$(husk version --format json | jq -r .version)"

	assert_contains "$(husk resolve "$REF")" "image ID:        $IMAGE_ID"
	husk resolve --format json "$IMAGE_ID" | jq -e --arg r "$REF" '.[0].held_by == "husk" and (.[0].references | index($r)) != null
		and (.[0].references[0] | contains("@sha256:")) and .[0].runtime_handlers == ["husk"]'
	assert_eq "$(husk resolve --format '{{.HeldBy}}' "$REGISTRY/pause:latest")" cri-o
	run -3 husk resolve "$REGISTRY/none:1"
	run -3 husk inspect "$REGISTRY/none:1"
	run -3 husk pull "$REGISTRY/none:1"
	run -1 husk images --format '{{.NoSuchField}}'
	run -1 husk images --format yaml
	run -1 husk images surplus
	run -4 husk pull --username alice --password-stdin "$AUTH_REGISTRY/private:1" <<<wr0ng-of-operate
	refute_contains "$output" wr0ng-of-operate
	run -4 husk_rm_in_use
	run -0 husk rm "$REF"
	assert_eq "$output" "$REF"
	assert_eq "$(husk images --format '{{.ImageID}}')" ""
	registry_stop
	run -5 husk pull "$REF"
	registry_start
	husk_stop
	run -5 husk resolve "$REF"
	assert_contains "$output" "$FRONT_SOCK"
	for code in 0 1 3 4 5; do husk man | grep -qE "(Exit codes: |; )$code " || fail "the man page does not say what exit code $code is"; done
}

# husk_rm_in_use removes an image that a container was made from.
husk_rm_in_use() {
	local pod image status=0
	pod=$(run_pod holds husk) || return 99
	image=$(pull_image "$REF" holds) || return 99
	create_ctr "$pod" holds c "$image=$REF" || return 99
	husk rm "$REF" || status=$?
	crictl rmp -f "$pod" || return 99
	return "$status"
}

@test "images of local layouts: inspected without a trace, pulled with a name" {
	local layout=oci:$HUSK_TMP/tmp/app-1:latest before archive
	archive=$HUSK_TMP/tmp/app.tar
	skopeo copy -q --insecure-policy "$layout" "oci-archive:$archive:local.example/team/app:9"
	before=$(stock images -q | sort)
	assert_eq "$(husk inspect "$layout" | jq -r '.[0].image_id')" "$IMAGE_ID"
	assert_eq "$(husk inspect --format '{{.LayerBytes}}' "oci-archive:$archive")" "$LAYER_BYTES"
	assert_eq "$(stock images -q | sort)" "$before"
	assert_eq "$(husk images --format '{{.ImageID}}')" ""

	assert_eq "$(husk pull "oci-archive:$archive")" "$IMAGE_ID"
	assert_eq "$(husk images --format '{{range .References}}{{.Reference}}{{end}}')" local.example/team/app:9
	cri inspecti --runtime-handler husk local.example/team/app:9 | jq -e --arg id "$IMAGE_ID" '.status.id | contains($id)'
	head -c 100000 "$archive" >"$archive.cut"
	run ! husk pull "oci-archive:$archive.cut"
	run -3 husk inspect "oci:$HUSK_TMP/tmp/none"
	husk rm local.example/team/app:9
}

@test "admission: an image over a handler's limit is refused with the numbers, for that handler alone" {
	local limit=$((LAYER_BYTES - 1)) mark
	mark=$(log_mark)
	printf '[handlers.husk]\nmax_image_size = %d\n' "$limit" >"$DROP_INS/10.toml"
	husk_reload ok
	run ! pull_for husk "$REF"
	assert_contains "$output" "code = ResourceExhausted"
	assert_contains "$output" "$LAYER_BYTES"
	assert_contains "$output" "$limit"
	assert_contains "$output" "$REF"
	assert_eq "$(husk images --format '{{.ImageID}}')" ""
	assert_eq "$(metric 'husk_pulls_total{handler="husk",outcome="too-large"}')" 1
	crictl pull "$REF" # an ordinary pull
	crictl rmi "$REF"
	# shellcheck disable=SC2046
	assert_eq "$(blob_requests "$mark" "" $(layer_digests "$REF"))" 3 "blobs that CRI-O alone has read"

	printf '[handlers.husk]\nmax_image_size = %d\nmax_layers = 2\n' "$LAYER_BYTES" >"$DROP_INS/10.toml"
	husk_reload ok
	run ! pull_for husk "$REF"
	assert_contains "$output" "code = ResourceExhausted"
	assert_contains "$output" "3 layers"
	printf '[handlers.husk]\nmax_image_size = %d\nmax_layers = 3\n' "$LAYER_BYTES" >"$DROP_INS/10.toml"
	husk_reload ok
	pull_for husk "$REF"
}

# pulls_metadata: a pull that has no need of CRI-O.
pulls_metadata() {
	ask runtime.v1.ImageService/PullImage "$(jq -n --arg r "$REF" '{image: {image: $r, runtimeHandler: "husk"}}')" --timeout 10s | grep -qF "$IMAGE_ID"
}

# resolves: what husk knows by itself of the image.
resolves() { [[ $(husk resolve --runtime-handler husk --format '{{.ImageID}}' "$REF") == "$IMAGE_ID" ]]; }

@test "CRI-O hung and slow: calls end in time, husk goes on with what it knows, and all is well by itself" {
	local crio pid slow method
	crio=$(daemon_pid crio)
	pid=$(daemon_pid husk)
	pulls_metadata
	kill -STOP "$crio"
	for method in RuntimeService/Version RuntimeService/ListContainers ImageService/ListImages; do
		run ! ask "runtime.v1.$method" '{}' --timeout 500ms
		assert_contains "$output" "DeadlineExceeded: "
	done
	# Whether husk's clock or the client's went first, it is counted.
	metrics /metrics | grep -E '^husk_forwarded_calls_total\{code="(DeadlineExceeded|Canceled)",method="runtime.v1.RuntimeService/Version"\} 1$'
	pulls_metadata
	resolves
	assert_eq "$(husk images --format '{{.ImageID}}')" "$IMAGE_ID"
	assert_eq "$(metric husk_records)" 1
	# A call that waits is answered when CRI-O goes on.
	ask runtime.v1.RuntimeService/Version '{}' --timeout 60s >"$HUSK_TMP/tmp/slow" 2>&1 3>&- &
	slow=$!
	CLIENTS=("$slow")
	sleep 1 # so that it meets a CRI-O that hangs
	kill -0 "$slow"
	kill -CONT "$crio"
	wait "$slow" || fail "$(cat "$HUSK_TMP/tmp/slow")"
	eventually 5 ask runtime.v1.RuntimeService/Version '{}' --timeout 1s
	assert_eq "$(daemon_pid husk)" "$pid"
	run ! gone "$pid"
}

@test "husk starts while CRI-O hangs, and says who is silent" {
	local crio
	crio=$(daemon_pid crio)
	kill -STOP "$crio"
	husk_replace hung
	pulls_metadata
	resolves
	run ! ask runtime.v1.RuntimeService/Version '{}' --timeout 20s
	assert_contains "$output" "Unavailable: CRI-O does not answer on $BACKEND_SOCK"
	run -5 husk resolve "$REF"
	assert_contains "$output" "CRI-O does not answer on $BACKEND_SOCK"
	refute_contains "$output" "does a husk serve"
	kill -CONT "$crio"
	eventually 5 cri -t 2s version
}

@test "CRI-O down: unavailable with the reason, at once, and back with it" {
	local pid
	pid=$(daemon_pid husk)
	crio_stop
	run ! ask runtime.v1.RuntimeService/Version '{}' --timeout 2s
	assert_contains "$output" "Unavailable: CRI-O does not answer on $BACKEND_SOCK"
	pulls_metadata
	resolves
	run -5 husk resolve "$REF"
	assert_contains "$output" "CRI-O does not answer on $BACKEND_SOCK"
	refute_contains "$output" "does a husk serve"
	crio_start
	eventually 5 ask runtime.v1.RuntimeService/Version '{}' --timeout 1s
	assert_contains "$(husk resolve "$REF")" "$IMAGE_ID"
	run ! gone "$pid"
}
