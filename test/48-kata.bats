#!/usr/bin/env bats
# What reaches a shim that does as Kata's do (internal/testkit/fakekata), under stock CRI-O and husk: all that a
# container is must be in the spec, for the guest has the image's files and nothing else of it. No real Kata is here.

# shellcheck disable=SC2016,SC2030,SC2031 # jq programs have $ of their own; a test sets POD, ref and image for itself
load helpers
load kubelet

# kata_handler NAME FLAVOUR: an entry of crio.conf.
kata_handler() {
	cat <<-TOML
		[crio.runtime.runtimes.$1]
		runtime_type = "vm"
		runtime_path = "$HUSK_BIN_DIR/containerd-shim-fakekata-v2"
		runtime_root = "$NODE_DIR/crio/$1"
		runtime_pull_image = true
		runtime_config_path = "$HUSK_TMP/kata-$2.toml"
		privileged_without_host_devices = true
	TOML
}

setup_file() {
	local flavour
	if [[ ! -x $HUSK_BIN_DIR/containerd-shim-fakekata-v2 ]]; then
		CGO_ENABLED=0 go -C "$HUSK_ROOT" build -o "$HUSK_BIN_DIR/containerd-shim-fakekata-v2" ./internal/testkit/fakekata/cmd
	fi
	node_up --auth alice:Kata-Secret-7
	export RECORD=$HUSK_TMP/kata.jsonl OUT=$HUSK_TMP/out KUBELET KATA MARK
	KUBELET=$(tool kubelet) KATA=$(tool kata)
	mkdir "$OUT"
	touch "$RECORD"
	for flavour in go rust; do
		printf 'record = "%s"\nflavour = "%s"\n' "$RECORD" $flavour >"$HUSK_TMP/kata-$flavour.toml"
	done
	{
		kata_handler kata-test go
		kata_handler kata-rs rust
		kata_handler kata-tag go
		kata_handler kata-late go
	} >"$NODE_DIR/conf/crio.conf.d/60-kata.conf"
	# Nobody answers at the name itself.
	cat >>"$NODE_DIR/conf/registries.conf" <<-TOML

		[[registry]]
		location = "mirrored.test"
		[[registry.mirror]]
		location = "$REGISTRY/mirror"
		insecure = true
	TOML
	crio_restart
	husk_start '[handlers.kata-tag]' 'pin_digest = false' '[handlers.kata-late]' 'named_users = "refuse-at-create"'
	images_up
	MARK=$(log_mark)
	for flavour in test rs tag late; do
		run_pod "$flavour" "kata-$flavour" "$POD_SAYS" >"$HUSK_TMP/kata-$flavour"
	done
}

teardown_file() {
	nodes_down
}

teardown() {
	show_logs_on_failure
}

# What every pod here says of itself, and every container.
readonly POD_SAYS='.annotations = {"io.katacontainers.config.hypervisor.kernel_params": "agent.log=debug <&> é",
	"io.katacontainers.config.runtime.create_container_timeout": "600", "example.test/pod": "yes"} | .labels = {app: "kata"}'
readonly CTR_SAYS='.annotations = {"example.test/container": "too"} | .labels = {part: "main"}'

images_up() {
	push_image plain:1 --layer /a=plain --cmd /bin/app
	push_image many:1 --layer /a=many --cmd /bin/app --index linux/amd64,linux/arm64
	push_image mirror/app:1 --layer /a=mirror --cmd /bin/app
	push_image full:1 --layer /a=full --entrypoint /bin/init --entrypoint --fast --cmd serve --cmd 'two words' --env A=image \
		--env B=image --workdir /srv/app --user 1234 --stop-signal SIGUSR1 --volume /data --volume /cache --label of=image
	push_image pair:1 --layer /a=pair --cmd /bin/app --user 2000:3000
	push_image named:1 --layer /a=named --cmd /bin/app --user web --passwd "$PASSWD" --group 'web:x:1300:'
	push_image group:1 --layer /a=group --cmd /bin/app --user 1234:web --group 'web:x:1300:'
	"$HUSK_BIN_DIR/mkimage" build --output "oci:$HUSK_TMP/tmp/private:latest" --summary "$HUSK_TMP/tmp/private-1.json" --layer /a=private --cmd /bin/app
	skopeo copy -q --insecure-policy --dest-tls-verify=false --dest-creds alice:Kata-Secret-7 "oci:$HUSK_TMP/tmp/private:latest" "docker://$AUTH_REGISTRY/private:1"
}

# digest NAME: of the manifest, or of the index, that push_image pushed by the tag 1.
digest() { jq -er .digest "$HUSK_TMP/tmp/$1-1.json"; }

# ---- what reached the shim ----

# event ID: what came with the container's Create.
event() { jq -ec --arg id "$1" 'select(.event == "create" and .id == $id)' "$RECORD"; }

# pod_up NAME: tests run their containers in that pod of setup_file's.
pod_up() { POD_NAME=$1 POD=$(<"$HUSK_TMP/kata-$1"); }

# create REF NAME [JQ] [-- COMMAND...]: pulls and creates as kubelet does, and sets ctr.
create() {
	local ref=$1 name=$2 jq=.
	shift 2
	if (($# > 0)) && [[ $1 != -- ]]; then
		jq=$1
		shift
	fi
	image=$(pull_image "$ref" "$POD_NAME") || return 1
	ctr=$(create_ctr "$POD" "$POD_NAME" "$name" "$image=$ref" "$CTR_SAYS | $jq" "$@")
}

# reached NAME SOURCE JQ [REF]: all that the container's Create must have brought; JQ makes its process of one that
# nobody says anything of.
reached() {
	local got want
	got=$(event "$ctr")
	want=$(jq -ncS --arg host "$POD_NAME" '{args: ["/bin/app"], cwd: "/", uid: 0, gid: 0, groups: [0], terminal: false,
		env: ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm", "HOSTNAME=\($host)"]}'" | $3")
	assert_eq "$(jq -cS .process <<<"$got")" "$want" "process of $1"
	assert_eq "$(jq -r .storage.source <<<"$got")" "$2" "reference of $1"
	annotated "$1" "$2" "$got" "$4"
}

# annotated NAME SOURCE EVENT REF: every annotation is there, has the value that it must have, and is in the volume and in
# what the agent is told.
annotated() {
	jq -e --arg name "$1" --arg source "$2" --arg ref "$4" --arg image "$image" --arg pod "$POD" --arg pod_name "$POD_NAME" '
		.spec.annotations as $a
		| (.rootfs[0].options[0] | ltrimstr("io.katacontainers.volume=") | @base64d | fromjson) as $v
		| (("Annotations ContainerID ContainerType Created IP.0 Image ImageName ImageRef Labels LogPath Metadata MountPoint Name
			PlatformRuntimePath ResolvPath SandboxID SandboxName SeccompProfilePath Stdin StdinOnce TTY Volumes" | [splits("\\s+")]
			| map("io.kubernetes.cri-o." + .)) + ("image-id image-ref image-volumes record-id user user-image" | split(" ") | map("husk.dev/" + .))
			+ ["io.container.manager", "example.test/pod", "example.test/container", "part", "io.katacontainers.config.hypervisor.kernel_params",
			"io.katacontainers.config.runtime.create_container_timeout"] 
			+ (if $ref | contains("/full") then ["org.opencontainers.image.stopSignal"] else [] end) | sort) == ($a | keys)
		and $a["io.kubernetes.cri-o.ImageName"] == $source
		and $a["io.kubernetes.cri-o.ContainerType"] == "container"
		and $a["io.kubernetes.cri-o.ContainerID"] == .id
		and $a["io.kubernetes.cri-o.SandboxID"] == $pod
		and ($a["io.kubernetes.cri-o.Metadata"] | fromjson.name) == $name
		and ($a["io.kubernetes.cri-o.Name"] | startswith("k8s_\($name)_\($pod_name)_default_"))
		and $a["io.kubernetes.cri-o.Image"] == $a["husk.dev/record-id"]
		and $a["io.container.manager"] == "cri-o"
		and $a["io.katacontainers.config.hypervisor.kernel_params"] == "agent.log=debug <&> é"
		and $a["io.katacontainers.config.runtime.create_container_timeout"] == "600"
		and $a["example.test/pod"] == "yes" and $a["example.test/container"] == "too" and $a.part == "main"
		and $a["husk.dev/image-id"] == $image and $a["husk.dev/user-image"] == $ref
		and ($a["husk.dev/image-ref"] | test("@sha256:[0-9a-f]{64}$"))
		and $v.source == $source and $v.image_pull.metadata == $a
		and (.storage | .driver == "image_guest_pull" and .fstype == "overlay" and (.mount_point | endswith("/rootfs"))
			and (.driver_options[0] | ltrimstr("image_guest_pull=") | fromjson.metadata) == $a)' <<<"$3" >/dev/null ||
		fail "annotations of $1: $(jq -c .spec.annotations <<<"$3")"
}

# arrives NAME REF SOURCE PROCESS [JQ] [-- COMMAND...]: it is created, and that reaches the shim.
arrives() {
	create "$2" "$1" "${@:5}"
	reached "$1" "$3" "$4" "$2"
}

# ---- references ----

@test "tags, digests, both, many platforms, a mirror: the guest gets the digest" {
	local plain many mirror
	pod_up test
	plain=$(digest plain) many=$(digest many) mirror=$(digest mirror-app)
	arrives tag "$REGISTRY/plain:1" "$REGISTRY/plain@$plain" .
	arrives digest "$REGISTRY/plain@$plain" "$REGISTRY/plain@$plain" .
	create "$REGISTRY/plain:1@$plain" both
	reached both "$REGISTRY/plain@$plain" . "$REGISTRY/plain@$plain" # a digest needs no tag
	arrives many "$REGISTRY/many:1" "$REGISTRY/many@$many" .
	arrives mirror mirrored.test/app:1 "mirrored.test/app@$mirror" . # the guest has mirrors of its own
}

@test "pin_digest = false: the guest gets the tag, and husk's own annotation the digest" {
	pod_up tag
	arrives tag "$REGISTRY/plain:1" "$REGISTRY/plain:1" .
	assert_eq "$(event "$ctr" | jq -r '.spec.annotations["husk.dev/image-ref"]')" "$REGISTRY/plain@$(digest plain)"
}

@test "runtime-rs takes the same" {
	pod_up rs
	arrives rust "$REGISTRY/full:1" "$REGISTRY/full@$(digest full)" "$FULL"
}

@test "a pod's own container is pause, whatever the host says" {
	local pod
	for pod in test rs; do
		pod_up $pod
		event "$POD" | jq -e --arg ref "$REGISTRY/pause:latest" '.type == "sandbox" and .storage.source == "pause" and .process.args == ["/pause"]
			and .spec.annotations["io.kubernetes.cri-o.ContainerType"] == "sandbox" and .spec.annotations["io.kubernetes.cri-o.ImageName"] == $ref'
	done
}

# ---- the process ----

# What the image "full" makes of a process.
readonly FULL='.args = ["/bin/init", "--fast", "serve", "two words"] | .env += ["A=image", "B=image"] | .cwd = "/srv/app" | .uid = 1234'

@test "entrypoint, command, args, env and working directory of image and request" {
	local ref=$REGISTRY/full:1 pinned
	pod_up test
	pinned=$REGISTRY/full@$(digest full)
	arrives full "$ref" "$pinned" "$FULL"
	assert_eq "$(event "$ctr" | jq -cS '.spec.annotations["husk.dev/image-volumes"] | fromjson')" '["/cache","/data"]'
	arrives args "$ref" "$pinned" "$FULL"' | .args = ["/bin/init", "--fast", "$(POD)", "x y"]' '.args = ["$(POD)", "x y"]'
	arrives command "$ref" "$pinned" "$FULL"' | .args = ["/bin/other"]' -- /bin/other
	arrives command-args "$ref" "$pinned" "$FULL"' | .args = ["/bin/other", "x"]' '.args = ["x"]' -- /bin/other
	arrives env "$ref" "$pinned" "$FULL"' | .env = .env[:3] + ["A=request", "C=<&> é", "EMPTY=", "B=image"]' \
		'.envs = [{key: "A", value: "request"}, {key: "C", value: "<&> é"}, {key: "EMPTY"}]'
	arrives cwd "$ref" "$pinned" "$FULL"' | .cwd = "/other"' '.working_dir = "/other"'
}

@test "numeric users and groups of image and request" {
	local pair full
	pod_up test
	pair=$REGISTRY/pair@$(digest pair) full=$REGISTRY/full@$(digest full)
	arrives uid "$REGISTRY/full:1" "$full" "$FULL"
	arrives pair "$REGISTRY/pair:1" "$pair" '.uid = 2000 | .gid = 3000 | .groups = [3000]'
	arrives as-user "$REGISTRY/pair:1" "$pair" '.uid = 70 | .gid = 0 | .groups = [0]' '.linux.security_context += {run_as_user: {value: 70}}'
	arrives as-all "$REGISTRY/full:1" "$full" "$FULL"' | .uid = 70 | .gid = 71 | .groups = [71, 72, 73]' \
		'.linux.security_context += {run_as_user: {value: 70}, run_as_group: {value: 71}, supplemental_groups: [72, 73]}'
}

# not_there NAME: the record holds no container of that name.
not_there() { run ! jq -e --arg n "$1" 'select(.spec.annotations["io.kubernetes.cri-o.Metadata"] // "{}" | fromjson.name == $n)' "$RECORD"; }

@test "users and groups that are names are refused with what to set, and nothing reaches the shim" {
	local name pod
	pod_up test
	# The default is to refuse the pull.
	for name in named:user group:group; do
		run ! pull_image "$REGISTRY/${name%:*}:1" test
		assert_contains "$output" "${name#*:} \"web\" of the image is a name and runtime handler kata-test cannot look names up: set runAsUser"
		assert_contains "$output" "refuse-at-create"
	done
	# Not where the pod says whom its containers run as.
	pod=$(run_pod numeric kata-test '.linux.security_context.run_as_user = {value: 70}')
	image=$(pull_image "$REGISTRY/named:1" numeric)
	crictl rmp -f "$pod"
	# Where only containers say it.
	pod_up late
	image=$(pull_image "$REGISTRY/named:1" late)
	run ! create_ctr "$POD" late refused "$image=$REGISTRY/named:1"
	assert_contains "$output" "user \"web\" of the image is a name and runtime handler kata-late cannot look names up: set runAsUser"
	not_there refused
	run ! create_ctr "$POD" late refused "$image=$REGISTRY/named:1" '.linux.security_context += {run_as_username: "web"}'
	assert_contains "$output" "is a name"
	not_there refused
	arrives late "$REGISTRY/named:1" "$REGISTRY/named@$(digest named)" '.uid = 70 | .gid = 71 | .groups = [71]' \
		'.linux.security_context += {run_as_user: {value: 70}, run_as_group: {value: 71}}'
}

# ---- secrets ----

@test "an image that docs/kata.md encrypts: the guest gets it, and the host no layer" {
	local dir=$BATS_TEST_TMPDIR/docs ref=$REGISTRY/app:encrypted raw mark
	mkdir "$dir"
	# What stands in the document, with this registry, from an image on this disk.
	awk '/^```/ { on = 0 } on; /run by test\/48-kata.bats/ { getline; on = 1 }' "$HUSK_ROOT/docs/kata.md" >"$dir/encrypt.sh"
	assert_contains "$(<"$dir/encrypt.sh")" "--encryption-key"
	(
		cd "$dir"
		export IMAGE=oci:$HUSK_TMP/tmp/plain-1:latest SKOPEO_FLAGS='--insecure-policy --dest-tls-verify=false'
		bash -eu encrypt.sh
	)
	raw=$(skopeo inspect --raw --tls-verify=false "docker://$ref")
	jq -e '.layers | length == 2 and all(.[]; .mediaType | endswith("+encrypted"))' <<<"$raw"
	mark=$(log_mark)
	pod_up test
	create "$ref" encrypted
	reached encrypted "$REGISTRY/app@sha256:$(printf %s "$raw" | sha256sum | cut -d ' ' -f 1)" . "$ref"
	# shellcheck disable=SC2046
	assert_eq "$(blob_requests "$mark" "" $(jq -r '.layers[].digest' <<<"$raw"))" 0
}

@test "a private image: pulled with the pod's credentials, of which nothing reaches the shim" {
	local mark ref=$AUTH_REGISTRY/private:1
	mark=$(log_mark --auth-registry)
	pod_up test
	run ! pull_image "$ref" test --creds alice:Kata-Wrong-7
	assert_contains "$output" "code = Unauthenticated"
	run ! pull_image "$ref" test
	image=$(pull_image "$ref" test --creds alice:Kata-Secret-7)
	ctr=$(create_ctr "$POD" test private "$image=$ref" "$CTR_SAYS")
	reached private "$AUTH_REGISTRY/private@$(digest private)" . "$ref"
	run ! grep -F -e Kata-Secret-7 -e "$(printf alice:Kata-Secret-7 | base64)" "$RECORD"
	log_since "$mark" --auth-registry | jq -se --args 'length > 0 and all(.[]; .path | contains($ARGS.positional[]) | not)' \
		"$(jq -r '.instances[0].layers[0].digest' "$HUSK_TMP/tmp/private-1.json")"
}

# ---- lives ----

# did ID: what became of a container, in order.
did() { jq -r --arg id "$1" 'select(.id == $id and (.exec_id // "") == "") | .event + (if .signal then " \(.signal)" else "" end)' "$RECORD" | xargs; }

@test "an init container, then two of one pod, exec, and the image's stop signal" {
	local first second ref=$REGISTRY/full:1
	pod_up test
	create "$ref" init -- exit 0
	crictl start "$ctr"
	eventually 10 ctr_exited "$ctr"
	assert_eq "$(ctr_status "$ctr" .exitCode)" 0
	create "$ref" fails -- exit 7
	crictl start "$ctr"
	eventually 10 ctr_exited "$ctr"
	assert_eq "$(ctr_status "$ctr" .exitCode)" 7
	create "$ref" first && first=$ctr
	create "$REGISTRY/plain:1" second && second=$ctr
	crictl start "$first" "$second"
	ctr_runs "$first" && ctr_runs "$second"
	assert_eq "$(crictl exec -s "$first" id -u | jq -c '[.args, .uid, .cwd]')" '[["id","-u"],1234,"/srv/app"]'
	assert_eq "$(crictl logs "$first" | jq -c .args)" '["/bin/init","--fast","serve","two words"]'
	crictl stop -t 20 "$first" "$second"
	assert_eq "$(did "$first")" "create start kill 10 exit" # SIGUSR1
	assert_eq "$(did "$second")" "create start kill 15 exit"
	crictl rm "$first" "$second"
	assert_eq "$(did "$first")" "create start kill 10 exit delete"
}

@test "kubelet's own calls: two containers, and their restart" {
	local attempt ref=$REGISTRY/full:1
	kubelet run --name lives --handler kata-test --annotation io.katacontainers.config.hypervisor.cc_init_data=abc \
		--container "a=$ref" --container "b=$REGISTRY/pair:1" >"$OUT/lives-run.json"
	kubelet restart --name lives >"$OUT/lives-restart.json"
	for attempt in 0 1; do
		jq -se --arg full "$REGISTRY/full@$(digest full)" --arg pair "$REGISTRY/pair@$(digest pair)" --argjson attempt $attempt '
			[.[] | select(.event == "create" and .spec.annotations["io.katacontainers.config.hypervisor.cc_init_data"] == "abc" and .type == "container")
			| select((.spec.annotations["io.kubernetes.cri-o.Metadata"] | fromjson.attempt // 0) == $attempt)
			| [.storage.source, .process.uid, .process.gid, .process.args, .spec.annotations["io.kubernetes.container.restartCount"]]] | sort
			== ([[$full, 1234, 0, ["/bin/init", "--fast", "serve", "two words"], "\($attempt)"],
				[$pair, 2000, 3000, ["/bin/app"], "\($attempt)"]] | sort)' "$RECORD"
	done
	kubelet delete --name lives >/dev/null
}

@test "what Kata refuses, fakekata refuses: a handler without the volume" {
	local pod
	cp "$NODE_DIR/conf/crio.conf.d/60-kata.conf" "$HUSK_TMP/60-kata.conf"
	kata_handler kata-plain go | sed 's/runtime_pull_image = true/runtime_pull_image = false/' >>"$NODE_DIR/conf/crio.conf.d/60-kata.conf"
	crio_restart
	run ! run_pod plain kata-plain
	assert_contains "$output" "0 mounts for the root file system"
	cp "$HUSK_TMP/60-kata.conf" "$NODE_DIR/conf/crio.conf.d/60-kata.conf"
	crio_restart
	pod_up test
	create "$REGISTRY/plain:1" after-restart # CRI-O finds the shim again
	crictl start "$ctr"
	ctr_runs "$ctr"
}

# ---- without CRI-O ----

@test "husk run makes the same calls: handler or path, and the exit status" {
	local runtime name=0 args
	for runtime in kata-test "$HUSK_BIN_DIR/containerd-shim-fakekata-v2"; do
		name=$((name + 1))
		args=(--rm --cgroup-parent "$CGROUP_PARENT" --name "alone-$name" --runtime "$runtime")
		[[ $runtime != /* ]] || args+=(--runtime-config "$HUSK_TMP/kata-go.toml")
		run -7 "$HUSK_BIN_DIR/husk" --config "$HUSK_TMP/husk.toml" run "${args[@]}" -e C=D "$REGISTRY/pair:1" exit 7
		assert_eq "$(jq -c .args <<<"$output")" '["exit","7"]' # what the process prints
		run -1 "$HUSK_BIN_DIR/husk" --config "$HUSK_TMP/husk.toml" run "${args[@]}" "$REGISTRY/named:1"
		assert_contains "$output" "web"
	done
	jq -se --arg pair "$REGISTRY/pair@$(digest pair)" '[.[] | select(.event == "create" and .storage.source == $pair
			and (.process.env | index("C=D")))] | length == 2 and all(.[];
		.process.uid == 2000 and .process.gid == 3000 and .process.cwd == "/"
		and .type == "container" and .sandbox != .id)' "$RECORD"
}

# ---- all of it ----

@test "every volume that CRI-O sent is, byte for byte, what pkg/katavolume makes" {
	local count
	count=$("$KATA" "$RECORD")
	((count > 25)) || fail "only $count volumes"
	# What is kept of an earlier one has the same shape.
	captured() { sed 's/^io.katacontainers.volume=//' "$1" | base64 -d | jq -c '[keys_unsorted, (.image_pull.metadata | keys | map(select(test("cri-o|husk.dev|manager"))))]'; }
	pod_up test
	event "$POD" | jq -r '.rootfs[0].options[0]' >"$HUSK_TMP/sandbox.option"
	assert_eq "$(captured "$HUSK_TMP/sandbox.option")" "$(captured "$HUSK_ROOT/pkg/katavolume/testdata/crio-1.34-sandbox.option")"
	jq -r 'select(.event == "create" and .type == "container").rootfs[0].options[0]' "$RECORD" | head -1 >"$HUSK_TMP/container.option"
	assert_eq "$(captured "$HUSK_TMP/container.option")" "$(captured "$HUSK_ROOT/pkg/katavolume/testdata/crio-1.34-container.option")"
}

@test "the host has asked for no layer" {
	local name layers
	layers=$(for name in plain many mirror/app full pair named group; do layer_digests "$REGISTRY/$name:1"; done)
	assert_eq "$(wc -w <<<"$layers")" 18
	# shellcheck disable=SC2086
	assert_eq "$(blob_requests "$MARK" "" $layers)" 0
	(($(log_since "$MARK" | jq -s '[.[] | select(.path | contains("/blobs/"))] | length') > 5)) || fail "the log has no configs either"
}

@test "pods end: no shim and no process is left" {
	local pod
	run ! gone # or this would look for the wrong thing
	for pod in test rs tag late; do
		pod_up $pod
		crictl rmp -f "$POD"
	done
	eventually 20 gone
}

gone() { ! pgrep -f "containerd-shim-fakekata-v2 serve .*$HUSK_TMP/" >/dev/null; }
