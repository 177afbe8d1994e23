#!/usr/bin/env bats
# Whom a container runs as: the container, its execs and its probes alike, and never root by omission.

load helpers

PASSWD='web:x:1234:1235:web:/home/web:/bin/sh'
GROUP=$'web:x:1235:\nstaff:x:50:web\nextra:x:60:'

# other_handlers adds guest-pull handlers whose shim is not Husk's as far as Husk can tell: a script of another name.
other_handlers() {
	local shim=$HUSK_TMP/containerd-shim-other-v2 name
	printf '#!/bin/sh\nexec %q "$@"\n' "$HUSK_BIN_DIR/containerd-shim-husk-v2" >"$shim"
	chmod +x "$shim"
	for name in other at-create trusted; do
		cat <<-TOML
			[crio.runtime.runtimes.$name]
			runtime_type = "vm"
			runtime_path = "$shim"
			runtime_root = "$NODE_DIR/crio/$name"
			runtime_pull_image = true
			runtime_config_path = "$HUSK_TMP/shim.toml"
		TOML
	done >"$NODE_DIR/conf/crio.conf.d/60-other.conf"
}

setup_file() {
	node_up
	other_handlers
	crio_restart
	husk_start '[handlers.at-create]' 'named_users = "refuse-at-create"' '[handlers.trusted]' 'named_users = "sandbox"'
}

teardown_file() {
	nodes_down
}

teardown() {
	show_logs_on_failure
}

# user_image TAG USER: an image with that user, which prints whom it runs as.
user_image() {
	push_image "users:$1" --user "$2" --passwd "$PASSWD" --group "$GROUP" --layer /a=1
}

# start_user TAG USER [JQ]: runs the image in a pod of its own and sets ctr.
start_user() {
	local ref image pod
	ref=$(user_image "$1" "$2")
	pod=$(run_pod "$1" husk)
	image=$(pull_image "$ref" "$1")
	ctr=$(run_ctr "$pod" "$1" c "$image=$ref" "${3:-.}" -- /bin/sh -c "echo \$(id -u):\$(id -g) \$(id -G) \$HOME; ${SLEEP[2]}")
}

logged() { [[ -n $(crictl logs "$ctr") ]]; }

# is WANT: the container, an exec and a streaming exec (which is what probes and kubectl exec use) run as that.
is() {
	local want=$1
	# shellcheck disable=SC2016
	local ask='echo $(id -u):$(id -g) $(id -G) $HOME'
	eventually 10 logged
	assert_eq "$(crictl logs "$ctr")" "$want" container
	assert_eq "$(crictl exec -s "$ctr" sh -c "$ask")" "$want" "exec sync"
	assert_eq "$(crictl exec "$ctr" sh -c "$ask" | tr -d '\r')" "$want" exec
}

@test "a named user, with its group, its groups and its home" {
	start_user named web
	is "1234:1235 1235 50 /home/web"
}

@test "a named user and a named group" {
	start_user named-group web:extra
	is "1234:60 60 /home/web"
}

@test "a numeric user" {
	start_user numeric 1234
	is "1234:1235 1235 50 /home/web"
}

@test "a numeric user that passwd does not know" {
	start_user unknown-number 4321
	is "4321:0 0 /"
}

@test "uid:gid" {
	start_user pair 2000:3000
	is "2000:3000 3000 /"
}

@test "no user is root, as the image says" {
	start_user root ""
	is "0:0 0 /root"
}

@test "the request stands over the image" {
	start_user request web '.linux.security_context += {run_as_user: {value: 2000}, run_as_group: {value: 3000}, supplemental_groups: [70]}'
	is "2000:3000 3000 70 /"
}

@test "the image's user under the request's groups" {
	start_user supplemental web '.linux.security_context += {run_as_username: "web", supplemental_groups: [70]}'
	is "1234:1235 1235 50 70 /home/web"
}

@test "an unknown name is refused, and nothing starts" {
	local ref image pod
	ref=$(user_image nobody-knows ghost)
	pod=$(run_pod nobody-knows husk)
	image=$(pull_image "$ref" nobody-knows)
	run ! create_ctr "$pod" nobody-knows c "$image=$ref" -- /bin/sh -c 'id'
	assert_contains "$output" ghost
	assert_eq "$(crictl ps -a -q --pod "$pod")" ""
	run ! crictl logs "$pod"
}

# user_query REFERENCE: what kubelet asks just before CreateContainer: the bare reference, no annotations, no handler.
user_query() { cri inspecti "$1" | jq -c '.status | [(.uid.value // "" | tostring), .username // ""]'; }

@test "kubelet's user query gets the true user of a layer-less image" {
	local tag
	declare -A users=([q-name]=web [q-number]=1234 [q-pair]=2000:3000 [q-root]="")
	declare -A want=([q-name]='["","web"]' [q-number]='["1234",""]' [q-pair]='["2000",""]' [q-root]='["",""]') # no user is root to kubelet
	for tag in "${!users[@]}"; do
		user_image "$tag" "${users[$tag]}"
		pod_json "$tag" >/dev/null
		pull_image "$REGISTRY/users:$tag" --runtime-handler husk
		assert_eq "$(user_query "$REGISTRY/users:$tag")" "${want[$tag]}" "user of $tag"
	done
}

@test "the user trap: CRI-O holds another image under the name, whose user is root" {
	local ref image pod
	ref=$(push_image trap:1 --layer /a=old) # user root
	stock pull "$ref"
	push_image trap:1 --user web --passwd "$PASSWD" --group "$GROUP" --layer /a=new
	pod=$(run_pod trap husk)
	image=$(pull_image "$ref" trap)
	# kubelet now asks for the user and is answered with CRI-O's image, for ordinary pods' sake; so it sends root's uid.
	assert_eq "$(user_query "$ref")" '["",""]'
	ctr=$(run_ctr "$pod" trap c "$image=$ref" '.linux.security_context.run_as_user = {value: 0}' -- "${SLEEP[@]}")
	assert_eq "$(crictl exec -s "$ctr" id -u)" 1234
}

@test "kubelet's own sequence: whom the container runs as" {
	local ref image pod
	ref=$(user_image kubelet web)
	pod=$(run_pod kubelet husk)
	run ! cri inspecti -a kubernetes.io/config.seen=now -a kubernetes.io/config.source=api "$ref"
	image=$(pull_image "$ref" kubelet -a kubernetes.io/config.seen=now -a kubernetes.io/config.source=api)
	assert_eq "$(user_query "$ref")" '["","web"]'
	ctr=$(run_ctr "$pod" kubelet c "$image=$ref" '.linux.security_context.run_as_username = "web"' -- "${SLEEP[@]}")
	assert_eq "$(crictl exec -s "$ctr" id -un)" web
}

@test "working directory and image volumes exist in the container" {
	local ref image pod
	ref=$(push_image dirs:1 --user web --passwd "$PASSWD" --group "$GROUP" --workdir /srv/app --volume /data/vol --layer /a=1)
	pod=$(run_pod dirs husk)
	image=$(pull_image "$ref" dirs)
	ctr=$(run_ctr "$pod" dirs c "$image=$ref" -- "${SLEEP[@]}")
	assert_eq "$(crictl exec -s "$ctr" pwd)" /srv/app
	crictl exec -s "$ctr" touch /data/vol/mine
}

# ---- runtimes that cannot look names up ----

# stored REFERENCE: a record has that name.
stored() { "$HUSK_BIN_DIR/husk" --config "$HUSK_TMP/husk.toml" images --format json | jq -e --arg r "$1" 'any(.[].references[].reference; . == $r)'; }

# AS has the pod, or the container, set runAsUser.
AS='.linux.security_context.run_as_user = {value: 1234}'

@test "a handler that cannot look names up: the pull is refused, says what to set, and nothing is stored" {
	local ref before mark image
	ref=$(user_image refused web)
	pod=$(run_pod refused other)
	before=$(stock images -q | sort)
	mark=$(log_mark)
	run ! pull_image "$ref" refused
	assert_contains "$output" "code = InvalidArgument"
	assert_contains "$output" "$ref"
	assert_contains "$output" "user \"web\" of the image is a name and runtime handler other cannot look names up"
	assert_contains "$output" "set runAsUser (and runAsGroup) in the pod's securityContext"
	assert_eq "$(stock images -q | sort)" "$before" "images in the store"
	run ! stored "$ref"
	# shellcheck disable=SC2046
	assert_eq "$(blob_requests "$mark" "" $(layer_digests "$ref"))" 0 "requests for layers"
	# A group by name is one to be looked up as well.
	user_image refused-group 1234:staff
	run ! pull_image "$REGISTRY/users:refused-group" refused
	assert_contains "$output" "group \"staff\" of the image is a name"
	# Without a pod nobody would run. The record is no way around: the container is refused.
	image=$(pull_image "$ref" --runtime-handler other)
	stored "$ref"
	run ! create_ctr "$pod" refused c "$image=$ref" -- "${SLEEP[@]}"
	assert_contains "$output" "code = InvalidArgument"
	assert_contains "$output" "set runAsUser (and runAsGroup) in the container's or the pod's securityContext"
	assert_eq "$(crictl ps -a -q --pod "$pod")" ""
}

@test "a handler that cannot look names up: the pod's runAsUser, and the container is that number" {
	local ref image pod
	ref=$(user_image pod-number web)
	pod=$(run_pod pod-number other "$AS")
	image=$(pull_image "$ref" pod-number)
	ctr=$(run_ctr "$pod" pod-number c "$image=$ref" "$AS" -- "${SLEEP[@]}")
	assert_eq "$(crictl exec -s "$ctr" id -u)" 1234
	assert_eq "$(crictl inspect "$ctr" | jq -r '.info.runtimeSpec.annotations["husk.dev/user"]')" '{"user":"1234"}'
}

@test "refuse-at-create: what only a container sets is enough for it, and no other container starts" {
	local ref image pod
	ref=$(user_image container-number web)
	pod=$(run_pod container-number at-create)
	image=$(pull_image "$ref" container-number)
	run ! create_ctr "$pod" container-number d "$image=$ref" -- "${SLEEP[@]}"
	assert_contains "$output" "runtime handler at-create cannot look names up: set runAsUser"
	assert_eq "$(crictl ps -a -q --pod "$pod")" ""
	ctr=$(run_ctr "$pod" container-number c "$image=$ref" "$AS" -- "${SLEEP[@]}")
	assert_eq "$(crictl exec -s "$ctr" id -u)" 1234
}

@test "names left to a shim that is not Husk's: husk warns, and a shim that looks them up gets them" {
	local ref image pod
	run "$HUSK_BIN_DIR/husk" --config "$HUSK_TMP/husk.toml" config --check
	assert_contains "$output" "handlers.trusted.named_users: "
	assert_contains "$output" "nobody (65534)"
	refute_contains "$output" "handlers.at-create"
	ref=$(user_image trusted web)
	pod=$(run_pod trusted trusted)
	image=$(pull_image "$ref" trusted)
	ctr=$(run_ctr "$pod" trusted c "$image=$ref" -- "${SLEEP[@]}")
	assert_eq "$(crictl exec -s "$ctr" id -u):$(crictl exec -s "$ctr" id -g)" 1234:1235
}
