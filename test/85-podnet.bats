#!/usr/bin/env bats
# pull_in_sandbox: what describes an image comes from the pod's network, with the pod's resolver, in the pod's cgroup;
# and separate_pull_cgroup.

# Each test sets pod, image and ctr for itself.
# shellcheck disable=SC2030,SC2031

load helpers

# Where the tenant's registry listens: on the pod's own loopback, port 5555. On the node nobody does.
TENANT=127.0.0.1:5555

setup_file() {
	node_up
	mkdir -p "$NODE_DIR/conf/crio.conf.d"
	# The shim, too, must speak plain HTTP to it.
	printf '[[registry]]\nlocation = "%s"\ninsecure = true\n' "$TENANT" >>"$NODE_DIR/conf/registries.conf"
	printf '[crio.runtime]\nseparate_pull_cgroup = "pod"\n' >"$HUSK_TMP/separate.conf"
	husk_start '[handlers.husk]' 'pull_in_sandbox = true'
}

teardown_file() {
	nodes_down
}

teardown() {
	show_logs_on_failure
	testnode stop --dir "$NODE_DIR" tenant
	rm -f "$NODE_DIR/conf/crio.conf.d/separate.conf"
}

# husk_restart [LINE OF TOML...]: husk with another configuration.
husk_restart() {
	husk_stop
	husk_start "$@"
}

# in_pod POD COMMAND...: runs a command of the node in the network of a pod.
in_pod() {
	local ns
	ns=$(stock inspectp "$1" | jq -er '.info.runtimeSpec.linux.namespaces[] | select(.type == "network") | .path') || return 1
	shift
	nsenter "--net=$ns" "$@"
}

# tenant POD COMMAND...: starts a daemon in the network of a pod. It ends with the test.
tenant() {
	local ns
	ns=$(stock inspectp "$1" | jq -er '.info.runtimeSpec.linux.namespaces[] | select(.type == "network") | .path') || return 1
	shift
	testnode start --dir "$NODE_DIR" tenant nsenter "--net=$ns" "$@"
}

# tenant_registry POD: a registry with the image app:1 that only the pod reaches.
tenant_registry() {
	mkdir -p "$HUSK_TMP/tenant"
	cat >"$HUSK_TMP/tenant.yml" <<-YML
		version: 0.1
		storage: {filesystem: {rootdirectory: "$HUSK_TMP/tenant"}}
		http: {addr: "$TENANT", secret: tenant}
	YML
	tenant "$1" docker-registry serve "$HUSK_TMP/tenant.yml"
	eventually 15 in_pod "$1" bash -c "echo >/dev/tcp/${TENANT/://}"
	"$HUSK_BIN_DIR/mkimage" build --output "oci:$HUSK_TMP/tmp/tenant:latest" --layer /a=tenant >&2
	in_pod "$1" skopeo copy --quiet --insecure-policy --dest-tls-verify=false "oci:$HUSK_TMP/tmp/tenant:latest" "docker://$TENANT/app:1"
}

# tenant_hangs POD: a registry that never answers, on the pod's loopback.
tenant_hangs() {
	tenant "$1" socat -u "TCP-LISTEN:${TENANT##*:},bind=${TENANT%%:*},fork,reuseaddr" OPEN:/dev/null
	eventually 15 in_pod "$1" bash -c "echo >/dev/tcp/${TENANT/://}"
}

# pull_groups: the groups of pulls at work in the pod's cgroup that have a process, in one hierarchy.
pull_groups() {
	local root=/sys/fs/cgroup dir found=1
	[[ ! -d $root/memory ]] || root+=/memory
	for dir in "$root$CGROUP_PARENT"/husk-pull-*; do
		[[ -s $dir/cgroup.procs || $(cat "$dir/cgroup.procs" 2>/dev/null) ]] || continue
		echo "$dir"
		found=0
	done
	return "$found"
}

# no_groups: no group of a pull is left, with or without a process.
no_groups() { [[ -z $(find /sys/fs/cgroup -path "*$CGROUP_PARENT/husk-pull-*") ]]; }

@test "a registry that only the pod reaches: pulled, run, and never asked by the host" {
	pod=$(run_pod own husk)
	tenant_registry "$pod"
	run ! skopeo inspect --tls-verify=false "docker://$TENANT/app:1" # not from the node
	image=$(pull_image "$TENANT/app:1" own)
	ctr=$(run_ctr "$pod" own c "$image=$TENANT/app:1" -- "${SLEEP[@]}")
	assert_eq "$(crictl exec -s "$ctr" cat /a)" tenant
	assert_contains "$(ctr_status "$ctr" .imageRef)" "$TENANT/app@sha256:"
	crictl rmp -f "$pod"
}

@test "the same pull from the node's network fails as a registry that is not there" {
	husk_restart
	pod=$(run_pod host husk)
	tenant_registry "$pod"
	run ! pull_image "$TENANT/app:1" host
	assert_contains "$output" "pulling image: RegistryUnavailable: "
	assert_contains "$output" "$TENANT/app:1"
	crictl rmp -f "$pod"
	husk_restart '[handlers.husk]' 'pull_in_sandbox = true'
}

@test "the requests come from the pod's address, none from the node" {
	local ref mark ip
	ref=$(push_image from:1 --layer /a=1)
	pod=$(run_pod from husk)
	ip=$(pod_ip "$pod")
	mark=$(log_mark)
	pull_image "$ref" from
	assert_eq "$(log_since "$mark" | jq -rs '[.[].remote] | unique | join(" ")')" "$ip"
	assert_contains "$(log_since "$mark" | jq -rs '[.[].path] | join(" ")')" /v2/from/manifests/1
	crictl rmp -f "$pod"
}

@test "a pod in the host's network pulls from there" {
	local ref mark
	ref=$(push_image hostnet:1 --layer /a=1)
	pod=$(run_pod hostnet husk '.linux.security_context.namespace_options.network = 2')
	mark=$(log_mark)
	pull_image "$ref" hostnet
	assert_eq "$(log_since "$mark" | jq -rs '[.[].remote] | unique | join(" ")')" "$NODE_IP"
	crictl rmp -f "$pod"
}

@test "the pull is in the pod's cgroup, and nothing of it stays when it is killed" {
	local group
	pod=$(run_pod group husk)
	tenant_hangs "$pod"
	pull_image "$TENANT/app:1" group >"$HUSK_TMP/tmp/pull.log" 2>&1 &
	local puller=$!
	eventually 15 pull_groups
	group=$(pull_groups)
	kill -9 "$(head -n1 "$group/cgroup.procs")"
	! wait "$puller" || fail "the pull succeeded" # in this shell: a child of run would not wait
	assert_contains "$(cat "$HUSK_TMP/tmp/pull.log")" "the child was killed"
	eventually 15 no_groups
	crictl rmp -f "$pod"
}

@test "the end of husk ends the pulls at work" {
	local group child
	pod=$(run_pod ended husk)
	tenant_hangs "$pod"
	pull_image "$TENANT/app:1" ended >/dev/null 2>&1 &
	local puller=$!
	eventually 15 pull_groups
	group=$(pull_groups)
	child=$(head -n1 "$group/cgroup.procs")
	husk_stop KILL
	eventually 15 test ! -e "/proc/$child"
	! wait "$puller" || fail "the pull succeeded" # in this shell: a child of run would not wait
	find /sys/fs/cgroup -depth -path "*$CGROUP_PARENT/husk-pull-*" -type d -exec rmdir {} + # kubelet removes a pod's cgroup with all in it
	husk_start '[handlers.husk]' 'pull_in_sandbox = true'
	crictl rmp -f "$pod"
}

@test "separate_pull_cgroup = pod: from the node's network, in the pod's cgroup" {
	cp "$HUSK_TMP/separate.conf" "$NODE_DIR/conf/crio.conf.d/separate.conf"
	husk_restart
	pod=$(run_pod separate husk)
	testnode start --dir "$NODE_DIR" tenant socat -u "TCP-LISTEN:5556,bind=$NODE_IP,fork,reuseaddr" OPEN:/dev/null
	eventually 15 bash -c "echo >/dev/tcp/$NODE_IP/5556"
	pull_image "$NODE_IP:5556/app:1" separate >/dev/null 2>&1 &
	local puller=$!
	eventually 15 pull_groups
	kill "$puller" # the client goes away
	! wait "$puller" || fail "the pull succeeded" # in this shell: a child of run would not wait
	eventually 15 no_groups
	crictl rmp -f "$pod"
	rm "$NODE_DIR/conf/crio.conf.d/separate.conf"
	husk_restart '[handlers.husk]' 'pull_in_sandbox = true'
}
