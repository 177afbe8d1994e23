#!/usr/bin/env bats
# The image service of a pod's shim (pkg/api/shim/v1), called as husk calls it: PullImage with progress and with the pod's
# own credentials, ListImages, RemoveImage and ImageStatus, and what is left when a client, a pod or a shim goes.

# Each test sets pod, image and ctr for itself.
# shellcheck disable=SC2030,SC2031

load helpers
load kubelet

# The image slow:1 has a layer that comes one byte at a time.
SLOW=(--layer /slow=1 --layer-random 64KiB)

setup_file() {
	local layer
	node_up
	"$HUSK_BIN_DIR/mkimage" build --output "oci:$HUSK_TMP/tmp/probe:latest" --summary "$HUSK_TMP/tmp/probe.json" \
		--passwd "$PASSWD" --group 'web:x:1300:' "${SLOW[@]}"
	layer=$(jq -er '.instances[0].layers[-1].digest' "$HUSK_TMP/tmp/probe.json")
	SHIMCTL=$(tool shimctl)
	export SHIMCTL
	# Not exported, or every process would have it in its environment.
	echo "Images-Carol-$RANDOM$RANDOM" >"$HUSK_TMP/carol"
	credential carol "$(carol)"
	tenants_up --fault "blob:$layer=drip:5ms" --user "carol:$(carol)=tenants/alice"
	husk_start
	push alice/app:1 --layer /a=1 --layer-random 8MiB
	push alice/other:1 --layer /b=1
	push alice/slow:1 "${SLOW[@]}"
	tag alice/app:1 tenants/alice:app
	tag alice/other:1 tenants/alice:other
	tag alice/slow:1 tenants/alice:slow
}

teardown_file() {
	nodes_down
}

teardown() {
	show_logs_on_failure
	[[ -z ${CLIENT:-} ]] || kill "$CLIENT" 2>/dev/null || true
}

shimctl() { "$SHIMCTL" "$1" --sandbox "$pod" "${@:2}" 3>&-; }

# carol: her password.
carol() { cat "$HUSK_TMP/carol"; }

# ref TAG: the pinned reference of an image of alice's.
ref() {
	local file=$HUSK_TMP/tmp/alice-$1-1.json
	echo "$TENANTS/tenants/alice@$(jq -er .digest "$file")"
}

# pull TAG [PASSWORD]: PullImage as carol. The password goes through a pipe.
pull() { printf 'carol:%s' "${2-$(carol)}" | shimctl pull --creds - "$(ref "$1")"; }

# client_of OUT TAG: PullImage as carol, in the background. Sets CLIENT, which prints to OUT.
client_of() {
	printf 'carol:%s' "$(carol)" >"$HUSK_TMP/creds"
	"$SHIMCTL" pull --sandbox "$pod" --creds "$HUSK_TMP/creds" "$(ref "$2")" >"$1" 2>&1 3>&- &
	CLIENT=$!
}

# gone PID: waits for a client and expects that its pull failed.
gone() { ! wait "$1" || fail "the pull succeeded"; }

# start_slow_pull: PullImage of the slow image, in the background: its client is $CLIENT and prints to $HUSK_TMP/slow.out.
start_slow_pull() {
	client_of "$HUSK_TMP/slow.out" slow
	eventually 10 half_way
	assert_eq "$(pull_groups | wc -l)" 1 "cgroups of pulls"
}

# in_the_pod: the child of the slow pull is in the pod's network, with the pod's resolver, and shows nothing of the host's
# environment.
in_the_pod() {
	local child ns
	child=$(find /sys/fs/cgroup -path "*/husk-$pod-pull-*/cgroup.procs" -exec cat {} + | sort -u | head -1)
	ns=$(stock inspectp "$pod" | jq -er '.info.runtimeSpec.linux.namespaces[] | select(.type == "network") | .path') || return 1
	assert_eq "$(readlink "/proc/$child/ns/net")" "$(stat -Lc 'net:[%i]' "$ns")" "network" || return 1
	assert_contains "$(cat "/proc/$child/root/etc/resolv.conf")" "nameserver $NODE_IP" || return 1
	refute_contains "$(cat /etc/resolv.conf)" "nameserver $NODE_IP" || return 1
	assert_eq "$(tr '\0' '\n' <"/proc/$child/environ" | cut -d= -f1 | sort | tr '\n' ' ')" "HOME PATH TMPDIR " "environment"
}

two_layers_done() { shimctl status | jq -e '.pulls[0].progress.layers_done == 2'; }

# in_store DIRECTORY: how many entries it has in the pod's store, which only the shim sees.
in_store() {
	nsenter -t "$(pgrep -f "containerd-shim-husk-v2.* -id $pod")" -m \
		find "/run/husk/pods/$pod/store/images/$1" -mindepth 1 -maxdepth 1 | wc -l
}

half_way() { shimctl status | jq -e '.pulls[0].progress.bytes_done > 0'; }

# pull_groups: the cgroups of the pod's pulls, each once.
pull_groups() { find /sys/fs/cgroup -type d -path "*$CGROUP_PARENT/*" -name "husk-$pod-pull-*" -printf '%f\n' 2>/dev/null | sort -u; }

no_pull_groups() { [[ -z $(pull_groups) ]]; }

# said_error: the kind of the error that the client of the slow pull had.
said_error() { jq -er 'select(.error) | .error.kind' "$HUSK_TMP/slow.out"; }

images_held() { shimctl list | jq -r '.images // [] | map(.reference) | join(" ")'; }

# requests FROM: how many requests the registry had from an address.
requests() { jq -s --arg ip "$1" 'map(select(.remote | startswith($ip + ":"))) | length' "$REQUESTS"; }

# nowhere TEXT: no process but the registry's has it in its arguments or its environment, and no file of the pods, of their
# bundles or of the node's logs.
nowhere() {
	local p
	for p in /proc/[0-9]*; do
		! grep -qaF -- "$1" "$p/cmdline" "$p/environ" 2>/dev/null || grep -qaF fakeregistry "$p/cmdline" || fail "$p has it: $(tr '\0' ' ' <"$p/cmdline" | cut -c1-80)" || return 1
	done
	! grep -rlaF --exclude-dir=store -- "$1" /run/husk "$CRIO_RUNROOT" "$CRIO_ROOT/overlay-containers" "$NODE_DIR/log" || fail "a file has it"
}

@test "PullImage: from the pod, as the pod's user, with progress; ListImages, ImageStatus" {
	local ip
	pod=$(run_pod service husk)
	ip=$(pod_ip "$pod")
	assert_eq "$(shimctl status | jq -c '[.sandbox_id, .pod_name, .pod_namespace, .pod_uid, .store.kind, .pulls]')" \
		"[\"$pod\",\"service\",\"default\",\"service-uid\",\"memory\",null]"
	assert_eq "$(images_held)" ""
	run -0 pull app
	# shellcheck disable=SC2154
	jq -es 'length > 1 and (.[-1].result | .layers == 3 and .bytes > 8000000) and all(.[:-1][]; .progress and (.result | not))
		and (.[-2].progress | .layers_done == .layers and .bytes_done == .bytes and .bytes > 8000000)' <<<"$output" >/dev/null || fail "$output"
	assert_eq "$(jq -r 'select(.result) | .result | [.reference, .image_id] | join(" ")' <<<"$output")" "$(ref app) $(image_id alice/app:1)"
	jq -es --arg ip "$ip" '[.[] | select(.path | test("/tenants/alice/blobs/")) | select(.status == 200)] | length > 0
		and all(.[]; (.remote | startswith($ip + ":")) and .user == "carol")' "$REQUESTS" >/dev/null || fail "not from the pod, or not as carol"
	assert_eq "$(images_held)" "$(ref app)"
	shimctl status | jq -e '.store | .used > 8000000 and .size > .used' >/dev/null
	crictl rmp -f "$pod"
}

@test "PullImage: each failure has its kind, and repeats no password" {
	pod=$(run_pod failures husk)
	run ! pull app "$WRONG"
	assert_eq "$(grep -o '"kind":"[a-z-]*"' <<<"$output")" '"kind":"unauthorized"'
	refute_contains "$output" "$WRONG"
	run ! shimctl pull "$(ref app)"
	assert_eq "$(grep -o '"kind":"[a-z-]*"' <<<"$output")" '"kind":"unauthorized"' "without credentials"
	run ! shimctl pull "$TENANTS/tenants/alice:app"
	assert_eq "$(grep -o '"kind":"[a-z-]*"' <<<"$output")" '"kind":"invalid-argument"' "a tag"
	run ! shimctl pull "$NODE_IP:1/nobody/there@$(ref app | cut -d@ -f2)"
	assert_eq "$(grep -o '"kind":"[a-z-]*"' <<<"$output")" '"kind":"registry-unavailable"'
	run ! shimctl remove "$(ref app)"
	assert_eq "$(grep -o '"kind":"[a-z-]*"' <<<"$output")" '"kind":"not-found"'
	assert_eq "$(images_held)" ""
	no_pull_groups
	crictl rmp -f "$pod"
}

@test "a container after PullImage asks no registry; its image stays until it is gone; credentials do not" {
	local ip before
	pod=$(run_pod after husk)
	ip=$(pod_ip "$pod")
	pull app >/dev/null
	image=$(pull_image "$TENANTS/tenants/alice:app" after --creds "carol:$(carol)")
	before=$(requests "$ip")
	ctr=$(run_ctr "$pod" after c "$image=$TENANTS/tenants/alice:app" -- "${SLEEP[@]}")
	assert_eq "$(crictl exec -s "$ctr" cat /a)" 1
	assert_eq "$(requests "$ip")" "$before" "requests of the pod"
	assert_eq "$(shimctl list | jq -c '.images[0] | [.reference, .image_id, .containers]')" "[\"$(ref app)\",\"$(image_id alice/app:1)\",[\"$ctr\"]]"
	assert_eq "$(jq -r .image.reference "/run/husk/pods/$pod/containers/$ctr.json")" "$(ref app)" "the container's record"

	# What PullImage was given is not there for others: the shim itself has no credentials here.
	pull other >/dev/null
	shimctl remove "$(ref other)" >/dev/null
	run ! shimctl pull "$(ref other)"
	assert_contains "$output" '"kind":"unauthorized"'

	run ! shimctl remove "$(ref app)"
	assert_contains "$output" '"kind":"in-use"'
	assert_contains "$output" "$ctr"
	assert_eq "$(crictl exec -s "$ctr" cat /a)" 1 "it runs on"
	crictl rm -f "$ctr"
	shimctl remove "$(image_id alice/app:1)" | jq -e '.freed > 8000000' >/dev/null
	assert_eq "$(images_held)" ""
	crictl rmp -f "$pod"
}

@test "a client that leaves ends its pull, and nothing of it stays but complete layers" {
	pod=$(run_pod leave husk)
	start_slow_pull
	in_the_pod
	rm "$HUSK_TMP/creds"
	nowhere "$(carol)"
	nowhere "$(printf 'carol:%s' "$(carol)" | base64 -w0)"
	eventually 10 two_layers_done
	kill -INT "$CLIENT"
	gone "$CLIENT"
	eventually 5 no_pull_groups
	assert_eq "$(shimctl status | jq -c .pulls)" null
	assert_eq "$(images_held)" ""
	assert_eq "$(in_store layers)" 2 "complete layers, for the next attempt"
	assert_eq "$(in_store tmp)" 0 "what is half made"
	nowhere "$(carol)"
	crictl rmp -f "$pod"
}

@test "two pulls of a pod at a time; others wait, and may leave" {
	local clients
	pod=$(run_pod many husk)
	start_slow_pull
	clients=("$CLIENT")
	client_of "$HUSK_TMP/many.2" slow
	clients+=("$CLIENT")
	eventually 5 pulls_are 2
	client_of "$HUSK_TMP/many.3" app
	eventually 5 pulls_are 3
	eventually 5 two_groups
	assert_eq "$(images_held)" "" "the third waits"
	kill -INT "${clients[0]}"
	wait "$CLIENT"
	pulled "$HUSK_TMP/many.3"
	kill -INT "${clients[1]}"
	eventually 5 pulls_are 0
	crictl rmp -f "$pod"
}

pulls_are() { [[ $(shimctl status | jq '.pulls // [] | length') == "$1" ]]; }
two_groups() { [[ $(pull_groups | wc -l) == 2 ]]; }
pulled() { jq -e 'select(.result)' "$1" >/dev/null; }

@test "a pod that is removed ends its pulls, at once and without a trace" {
	local begin=$SECONDS
	pod=$(run_pod gone husk)
	start_slow_pull
	crictl rmp -f "$pod"
	((SECONDS - begin < 20)) || fail "it took $((SECONDS - begin)) s"
	gone "$CLIENT"
	assert_eq "$(said_error)" unavailable
	eventually 10 test ! -e "/run/husk/pods/$pod"
	no_pull_groups
}

@test "kill -9 of the shim: an open pull ends with a clear error, and the pod can be removed" {
	pod=$(run_pod killed husk)
	start_slow_pull
	kill -9 "$(pgrep -f "containerd-shim-husk-v2.* -id $pod")"
	gone "$CLIENT"
	assert_eq "$(said_error)" unavailable
	assert_contains "$(cat "$HUSK_TMP/slow.out")" "was killed"
	no_pull_groups
	run ! shimctl status
	assert_contains "$output" '"kind":"unavailable"'
	crictl rmp -f "$pod"
	eventually 10 test ! -e "/run/husk/pods/$pod"
}
