#!/usr/bin/env bash
# Helpers of the end-to-end tests. A bats file does
#
#   load helpers
#   setup_file()    { node_up --auth alice:Some-Secret-1; husk_start; }   # or in setup(), for a node per test
#   teardown_file() { nodes_down; }
#   teardown()      { show_logs_on_failure; }
#
# node_up makes a node in a short scratch folder and exports, for all tests of the file:
#   NODE_DIR HUSK_TMP REGISTRY AUTH_REGISTRY NODE_IP CGROUP_PARENT CRIO_ROOT CRIO_RUNROOT
#   BACKEND_SOCK (CRI-O's own socket)  FRONT_SOCK (where husk listens)  CRI_SOCK (the one crictl uses)
# The registry has pause:latest and busybox:latest from the start.

bats_require_minimum_version 1.5.0

HUSK_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
HUSK_BIN_DIR=${HUSK_BIN_DIR:-$HUSK_ROOT/build/bin}
HUSK_CACHE=${HUSK_CACHE:-${HOME:-/root}/.cache/husk}
# Where the logs of failed tests are kept.
HUSK_LOG_DIR=${HUSK_LOG_DIR:-$HUSK_ROOT/build/test-logs}

fail() {
	printf '%s\n' "$*" >&2
	return 1
}

# ---- nodes ----

testnode() { "$HUSK_BIN_DIR/testnode" "$@"; }

# node_up [FLAG OF testnode up...]: starts a node and makes it the current one. When the shim is built the node has
# the handler "husk"; NODE_SHIM=PATH names another one, NODE_SHIM=none leaves the handler out.
node_up() {
	local scratch shim=()
	scratch=$(mktemp -d /tmp/hk.XXXXXX)
	echo "$scratch" >>"${BATS_FILE_TMPDIR:?}/nodes"
	mkdir -p "$scratch/keys" "$scratch/tmp" "$scratch/state"
	local path=${NODE_SHIM:-$HUSK_BIN_DIR/containerd-shim-husk-v2}
	if [[ -x $path ]]; then
		shim_config "$scratch" >"$scratch/shim.toml"
		shim=(--husk-shim "$path" --shim-config "$scratch/shim.toml")
	fi
	credentials_of "$@"
	testnode up --dir "$scratch/n" --cache "$HUSK_CACHE" "${shim[@]}" "$@" >"$scratch/up.json" || return 1
	node_use "$scratch"
}

# shim_config SCRATCH prints the shim's configuration. Private keys go into SCRATCH/keys.
shim_config() {
	cat <<-TOML
		runtime_root = "$1/state/runc"
		keys_dir = "$1/keys"
		registries_conf = "$1/n/conf/registries.conf"
		exits_dir = "$1/n/crio/exits"
	TOML
}

# node_use SCRATCH makes a node the current one: it exports the variables above.
node_use() {
	export HUSK_TMP=$1 NODE_DIR=$1/n
	local vars
	vars=$(jq -r '@sh "REGISTRY=\(.registry.address) AUTH_REGISTRY=\(.authRegistry.address // "") NODE_IP=\(.network.ip)
		CGROUP_PARENT=\(.cgroupParent) CRIO_ROOT=\(.crio.root) CRIO_RUNROOT=\(.crio.runRoot)
		BACKEND_SOCK=\(.crio.socket) FRONT_SOCK=\(.frontSocket)"' "$NODE_DIR/node.json") || return 1
	eval "$vars"
	CRI_SOCK=$BACKEND_SOCK
	export REGISTRY AUTH_REGISTRY NODE_IP CGROUP_PARENT CRIO_ROOT CRIO_RUNROOT BACKEND_SOCK FRONT_SOCK CRI_SOCK
}

# node_down [SCRATCH]: takes a node (default: the current one) down and removes its scratch folder. It prints a
# warning for everything that an orderly end has left.
node_down() {
	local scratch=${1:-$HUSK_TMP}
	if [[ -d $scratch/n/log ]]; then # it goes with the node; 99-leaks.bats reads the copy
		mkdir -p "$BATS_SUITE_TMPDIR/logs" && cp -r "$scratch/n/log" "$BATS_SUITE_TMPDIR/logs/$(basename "$scratch")" || return 1
	fi
	testnode down --dir "$scratch/n" || return 1
	rm -rf --one-file-system "$scratch"
}

# nodes_down takes every node of this file down that is still there. It fails if anything stays.
nodes_down() {
	local scratch failed=0
	[[ -f $BATS_FILE_TMPDIR/nodes ]] || return 0
	while read -r scratch; do
		[[ ! -d $scratch ]] || node_down "$scratch" || failed=1
	done <"$BATS_FILE_TMPDIR/nodes"
	return "$failed"
}

crio_stop() { testnode crio-stop --dir "$NODE_DIR" "$@"; } # [--signal KILL]
crio_start() { testnode crio-start --dir "$NODE_DIR"; }
crio_restart() { crio_stop "$@" && crio_start; }
registry_stop() { testnode registry-stop --dir "$NODE_DIR"; }
registry_start() { testnode registry-start --dir "$NODE_DIR"; }

# daemon_pid NAME prints the pid of a daemon of the node: crio, registry, auth-registry, husk.
daemon_pid() { jq -er --arg n "$1" '.daemons[$n].pid' "$NODE_DIR/node.json"; }

# ---- husk ----

# husk_config prints the configuration of husk for the current node.
husk_config() {
	cat <<-TOML
		listen = "$FRONT_SOCK"
		backend = "$BACKEND_SOCK"
		handover_socket = "$HUSK_TMP/handover.sock"
		crio_config = "$NODE_DIR/conf/crio.conf"
		crio_config_dir = "$NODE_DIR/conf/crio.conf.d"
		registries_conf = "$NODE_DIR/conf/registries.conf"
	TOML
}

# husk_start [LINE OF TOML...]: starts husk in front of CRI-O, with further top-level lines of configuration, and
# waits until it answers. From then on crictl talks to husk.
husk_start() {
	{
		husk_config
		(($# == 0)) || printf '%s\n' "$@"
	} >"$HUSK_TMP/husk.toml"
	testnode start --dir "$NODE_DIR" husk "$HUSK_BIN_DIR/husk" --config "$HUSK_TMP/husk.toml" serve || return 1
	export CRI_SOCK=$FRONT_SOCK
	eventually 30 cri version || fail "husk does not answer: $(tail -5 "$NODE_DIR/log/husk.log")"
}

# husk_stop [SIGNAL]: ends husk; crictl talks to CRI-O again.
husk_stop() {
	testnode stop --dir "$NODE_DIR" --signal "${1:-TERM}" husk || return 1
	export CRI_SOCK=$BACKEND_SOCK
}

# ---- CRI client ----

# cri is always this project's CRI client, which has options that cri-tools' crictl lacks (--runtime-handler).
cri() {
	credentials_of "$@"
	"$HUSK_BIN_DIR/crictl" -r "unix://$CRI_SOCK" -t 120s "$@"
}

# crictl is cri-tools' own where there is one.
crictl() {
	local real
	credentials_of "$@"
	real=$(type -P crictl || true)
	"${real:-$HUSK_BIN_DIR/crictl}" -r "unix://$CRI_SOCK" -t 120s "$@"
}

# stock talks to CRI-O itself, as if husk were not there.
stock() { "$HUSK_BIN_DIR/crictl" -r "unix://$BACKEND_SOCK" -t 120s "$@"; }

# pod_json NAME [JQ]: writes a pod's configuration, changed by a jq program, and prints the file's path. Its pid
# namespace is CONTAINER (1), kubelet's default: without CAP_SYS_RESOURCE a pod with an infra container fails. Its
# resolver is the node, where nothing listens and a look-up fails at once.
pod_json() {
	local file=$HUSK_TMP/tmp/$1-pod.json
	mkdir -p "$NODE_DIR/log/pods/$1"
	jq -n --arg name "$1" --arg logs "$NODE_DIR/log/pods/$1" --arg cgroup "$CGROUP_PARENT" --arg dns "$NODE_IP" '{
		metadata: {name: $name, uid: ($name + "-uid"), namespace: "default", attempt: 0},
		hostname: $name, log_directory: $logs, dns_config: {servers: [$dns]},
		linux: {cgroup_parent: $cgroup, security_context: {namespace_options: {pid: 1}}}
	} | '"${2:-.}" >"$file" || return 1
	echo "$file"
}

# ctr_json NAME IMAGE [JQ] [-- COMMAND...]: writes a container's configuration and prints the file's path. IMAGE is
# "REFERENCE" or, as kubelet sends it, "ID=REFERENCE": what PullImage answered and what the pod says.
ctr_json() {
	local name=$1 image=${2%%=*} said=${2#*=} program=.
	local file=$HUSK_TMP/tmp/$1-ctr.json
	shift 2
	if (($# > 0)) && [[ $1 != -- ]]; then
		program=$1
		shift
	fi
	[[ ${1:-} != -- ]] || shift
	jq -n --arg name "$name" --arg image "$image" --arg said "$said" '{
		metadata: {name: $name, attempt: 0}, image: {image: $image, user_specified_image: $said},
		log_path: ($name + ".log"), linux: {security_context: {namespace_options: {pid: 1}}}
	} | if ($ARGS.positional | length) > 0 then .command = $ARGS.positional else . end | '"$program" \
		--args -- "$@" >"$file" || return 1
	echo "$file"
}

# run_pod NAME HANDLER [JQ]: runs a pod and prints its ID. Its file is $HUSK_TMP/tmp/NAME-pod.json.
run_pod() {
	local file
	file=$(pod_json "$1" "${3:-.}") || return 1
	crictl runp -r "$2" "$file"
}

# create_ctr POD-ID POD-NAME NAME IMAGE [JQ] [-- COMMAND...]: creates a container and prints its ID.
create_ctr() {
	local pod=$1 pod_file=$HUSK_TMP/tmp/$2-pod.json file
	shift 2
	file=$(ctr_json "$@") || return 1
	crictl create "$pod" "$file" "$pod_file"
}

# run_ctr: create_ctr, and start it.
run_ctr() {
	local id
	id=$(create_ctr "$@") || return 1
	crictl start "$id" >/dev/null || return 1
	echo "$id"
}

# pull_image REFERENCE [POD-NAME] [FLAG OF crictl pull...]: pulls as kubelet does for a pod, and prints what
# PullImage answered.
pull_image() {
	local ref=$1 args=()
	shift
	if (($# > 0)) && [[ $1 != -* ]]; then
		args=(--pod-config "$HUSK_TMP/tmp/$1-pod.json")
		shift
	fi
	local out
	out=$(crictl pull "${args[@]}" "$@" "$ref") || return 1
	echo "${out##* }"
}

# SLEEP is a command that runs until it is told to end.
# shellcheck disable=SC2034 # for the tests
SLEEP=(/bin/sh -c "trap 'exit 0' TERM; while :; do sleep 0.2; done")

pod_ip() { crictl inspectp "$1" | jq -er .status.network.ip; }

# ctr_status ID JQ: a part of a container's status.
ctr_status() { crictl inspect "$1" | jq -er ".status | $2"; }

ctr_runs() { [[ $(ctr_status "$1" .state) == CONTAINER_RUNNING ]]; }
ctr_exited() { [[ $(ctr_status "$1" .state) == CONTAINER_EXITED ]]; }

# ---- registry ----

# push_layout LAYOUT[:TAG] NAME[:TAG]: copies an image or a whole index from an OCI layout to the registry and prints
# its reference.
push_layout() {
	skopeo copy --quiet --all --insecure-policy --dest-tls-verify=false "oci:$1" "docker://$REGISTRY/$2" >&2 || return 1
	echo "$REGISTRY/$2"
}

# push_image NAME:TAG [FLAG OF mkimage build...]: builds an image, pushes it, and prints its reference. mkimage's
# summary is then in $HUSK_TMP/tmp/NAME-TAG.json.
push_image() {
	local name=$1 slug=${1//[:\/]/-}
	shift
	"$HUSK_BIN_DIR/mkimage" build --output "oci:$HUSK_TMP/tmp/$slug:latest" --summary "$HUSK_TMP/tmp/$slug.json" "$@" >&2 || return 1
	push_layout "$HUSK_TMP/tmp/$slug:latest" "$name"
}

# log_mark prints the present end of the access log; log_since takes it. Flags: --auth-registry.
log_mark() { testnode access-log --dir "$NODE_DIR" --offset "$@"; }

# log_since MARK [FLAG...]: the requests since then, as JSON lines {method,path,remote,status,bytes,...}.
log_since() {
	local mark=$1
	shift
	testnode access-log --dir "$NODE_DIR" --since "$mark" "$@"
}

# blob_requests MARK REMOTE DIGEST...: how many GET and HEAD of these blobs came from an address since MARK. An empty
# REMOTE counts every address.
blob_requests() {
	local mark=$1 remote=$2
	shift 2
	log_since "$mark" | jq -s --arg remote "$remote" '[.[] | select((.method == "GET" or .method == "HEAD")
		and ($remote == "" or .remote == $remote)
		and (.path | split("?")[0] | split("/") | .[-2] == "blobs" and (.[-1] | IN($ARGS.positional[]))))] | length' --args -- "$@"
}

# layer_digests REFERENCE: the digests of an image's layers, of all platforms of an index.
layer_digests() {
	local raw repo=${1%@*} d
	[[ ${repo##*/} != *:* ]] || repo=${repo%:*}
	raw=$(skopeo inspect --raw --tls-verify=false "docker://$1") || return 1
	if jq -e .manifests >/dev/null <<<"$raw"; then
		for d in $(jq -r '.manifests[].digest' <<<"$raw"); do layer_digests "$repo@$d" || return 1; done
	else
		jq -r '.layers[].digest' <<<"$raw"
	fi
}

# ---- assertions ----

# eventually SECONDS COMMAND...: tries until it succeeds.
eventually() {
	local end=$((SECONDS + $1))
	shift
	until "$@" >/dev/null 2>&1; do
		((SECONDS < end)) || fail "not within the time: $*" || return 1
		sleep 0.1
	done
}

assert_eq() { # GOT WANT [WHAT]
	[[ $1 == "$2" ]] || fail "${3:-value}: got '$1', want '$2'"
}

assert_contains() { # TEXT PART
	[[ $1 == *"$2"* ]] || fail "'$2' is not in: $1"
}

refute_contains() { # TEXT PART
	[[ $1 != *"$2"* ]] || fail "'$2' is in: $1"
}

# refute_in_logs TEXT: no log of the node holds it, so no credential has leaked.
refute_in_logs() {
	local found
	found=$(grep -rlF -- "$1" "$NODE_DIR/log" || true)
	[[ -z $found ]] || fail "found in $found"
}

# ---- credentials ----

# credential USER SECRET: notes what no log of the whole suite may hold; 99-leaks.bats looks. node_up, cri and crictl
# note what they are given by themselves. A secret that is an ordinary word would be found in logs that leak nothing.
credential() {
	[[ $2 == ????????* && $2 == *[0-9]* ]] || fail "a test's secret must be eight characters or more, with a digit: not $2"
	printf '%s\n%s\n' "$2" "$(printf '%s:%s' "$1" "$2" | base64 -w0)" >>"$BATS_SUITE_TMPDIR/credentials"
}

# credentials_of ARGUMENT...: credential, for the USER:SECRET after each --auth and --creds.
credentials_of() {
	while (($# > 1)); do
		if [[ $1 == --auth || $1 == --creds ]]; then credential "${2%%:*}" "${2#*:}"; fi
		shift
	done
}

# ---- nothing left behind ----

# traces SCRATCH NETWORK (hsktN-RANDOM, the name of CGROUP_PARENT): what a node has on the machine, apart from its files. Zombies do not count: this machine's
# init reaps late. Nor do this test's own processes, which name the folder too.
traces() {
	local p exe
	awk -v d="$1/" 'index($5, d) == 1 {print "mount", $5}' /proc/self/mountinfo
	for p in /proc/[0-9]*; do
		exe=$(readlink "$p/exe") || continue
		case ${exe##*/} in
		conmon | runc | crio | docker-registry | testnode | husk | containerd-shim-*)
			if tr '\0' ' ' <"$p/cmdline" 2>/dev/null | grep -qF "$1/"; then echo "process ${p#/proc/} $exe"; fi
			;;
		esac
	done
	find /sys/fs/cgroup -path "*/$2" -printf 'cgroup %p\n' 2>/dev/null
	grep -lxF -- "$2" /sys/class/net/*/ifalias 2>/dev/null
	find /var/lib/cni/results -name "$2-*" 2>/dev/null
	iptables-save 2>/dev/null | grep -F "$2" || true
}

# ---- logs ----

# show_logs_on_failure: for teardown. Prints the ends of the logs of a failed test and keeps all of them.
show_logs_on_failure() {
	[[ -z ${BATS_TEST_COMPLETED:-} && -n ${NODE_DIR:-} && -d $NODE_DIR/log ]] || return 0
	local keep f
	keep=$HUSK_LOG_DIR/$(basename "$BATS_TEST_FILENAME" .bats)-$BATS_TEST_NUMBER
	mkdir -p "$keep" && cp -r "$NODE_DIR/log/." "$NODE_DIR/node.json" "$keep/"
	for f in husk crio; do
		[[ ! -s $NODE_DIR/log/$f.log ]] || printf '# ---- %s.log\n%s\n' "$f" "$(tail -15 "$NODE_DIR/log/$f.log" | cut -c1-400)"
	done
	echo "# all logs: $keep"
}
