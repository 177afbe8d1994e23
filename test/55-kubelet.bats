#!/usr/bin/env bats
# kubelet 1.34's own calls, in its order and with its fields, as test/kubelet makes them: whatever the pull policy and
# with the gate RuntimeClassInImageCriApi or without, a guest-pull pod runs the right image as the right user, and an
# ordinary pod notices nothing of husk.

load helpers
load kubelet

setup_file() {
	node_up
	tenants_up
	guest_credential
	base_images
	husk_start
}

teardown_file() {
	nodes_down
}

teardown() {
	show_logs_on_failure
}

# ---- ordinary pods ----

# ordinary SOCKET DIR: the lives of pods of an ordinary handler, with every call that kubelet makes.
ordinary() {
	# shellcheck disable=SC2034 # kubelet uses it
	local CRI_SOCK=$1 OUT=$2 gate pod images flags
	mkdir -p "$OUT"
	mapfile -t images < <(three base)
	for gate in off on; do
		flags=(--handler runc --gate "$gate" "${images[@]}")
		launch run "never-$gate" "${flags[@]}" --policy Never -- "${WHO[@]}"
		launch run "denied-$gate" "${flags[@]}" --creds "alice:$WRONG" -- "${WHO[@]}"
		landed
		launch run "present-$gate" "${flags[@]}" --creds "alice:$WRONG" --creds "admin:$ADMIN" -- "${WHO[@]}"
		landed
		launch run "always-$gate" "${flags[@]}" --policy Always --creds "admin:$ADMIN" --run-as-non-root -- "${WHO[@]}"
		launch restart "present-$gate" --gate "$gate"
		landed
		kubelet gc --gate "$gate" >"$OUT/used-$gate-gc.json"
		for pod in never denied present always; do launch delete "$pod-$gate"; done
		landed
		kubelet gc --gate "$gate" >"$OUT/unused-$gate-gc.json"
	done
}

# plain DIR: the answers to all calls there, but for IDs and times. Lists are in the order of the images' IDs or the pods' names.
plain() {
	local file
	for file in "$1"/*.json; do
		jq -S --arg file "$(basename "$file")" --slurpfile all <(cat "$1"/*.json) '
			[$all[] | .sandbox // empty, ((.containers // [])[].id | select(.))] as $ids
			| def order: if type == "array" and all(.[]; type == "object" and (has("repo_tags") or has("metadata")))
				then sort_by(.repo_tags, .labels) else . end;
			{file: $file, rest: .} | walk(
				if type == "object" then del(.created_at, .started_at, .finished_at, .timestamp, .ip, ."kubernetes.io/config.seen")
				elif type == "string" and IN($ids[]) then "ID" else order end)' "$file" || return 1
	done
}

# shellcheck disable=SC2030,SC2031 # OUT is this test's own
@test "an ordinary pod: every call is answered as CRI-O itself answers it" {
	ordinary "$BACKEND_SOCK" "$HUSK_TMP/stock"
	ordinary "$FRONT_SOCK" "$HUSK_TMP/through"
	plain "$HUSK_TMP/stock" >"$HUSK_TMP/stock.json"
	plain "$HUSK_TMP/through" >"$HUSK_TMP/through.json"
	diff "$HUSK_TMP/stock.json" "$HUSK_TMP/through.json" >"$HUSK_TMP/diff" || fail "$(head -60 "$HUSK_TMP/diff")"
	# Not because nothing happened.
	OUT=$HUSK_TMP/through
	assert_eq "$(outputs present-on-run)" "$USERS"
	assert_eq "$(outputs present-on-restart)" "$USERS"
	assert_eq "$(said unused-on-gc '.removed | length')" 3
}

# ---- guest-pull pods ----

# reload makes husk read husk.toml again.
reload() {
	local before
	before=$(grep -c "reloaded" "$NODE_DIR/log/husk.log" || true)
	kill -HUP "$(daemon_pid husk)"
	eventually 10 reloaded $((before + 1))
}

reloaded() { (($(grep -c "reloaded" "$NODE_DIR/log/husk.log") >= $1)); }

@test "the node has nothing: every policy, with the gate and without, as the image's user" {
	local policy gate layers
	tag_all base new
	for gate in off on; do
		pod "never-$gate" new --policy Never --gate "$gate"
	done
	landed
	none never-off-run ErrImageNeverPull
	none never-on-run ErrImageNeverPull
	assert_eq "$(asked '.method != "PUT" and (.path | endswith("/manifests/new"))')" 0 "requests for an image nobody may pull"
	for policy in Always IfNotPresent; do
		for gate in off on; do
			tag_all base "$policy-$gate"
			pod "$policy-$gate" "$policy-$gate" --policy $policy --gate "$gate"
		done
	done
	landed
	for pod in Always-off Always-on IfNotPresent-off IfNotPresent-on; do right "$pod-run" 3; done
	# What kubelet made of the images' users.
	said Always-off-run '[.calls[] | select(.method == "CreateContainer").request.config.linux.security_context
		| [.run_as_user, .run_as_username]] == [[{value: "1234"}, null], [null, "web"], [{}, null]]'

	layers=$(layer_fetches)
	launch restart Always-off
	launch restart Always-on --gate on
	launch restart IfNotPresent-off
	launch restart IfNotPresent-on --gate on
	landed
	assert_eq "$(layer_fetches)" "$layers" "layers that were fetched, after the restarts"
	right Always-off-restart 3
	right Always-on-restart 3
	right IfNotPresent-off-restart 3 # without the gate kubelet cannot know
	right IfNotPresent-on-restart 0
	for pod in Always-off Always-on IfNotPresent-off IfNotPresent-on; do
		diff <(images "$pod-run") <(images "$pod-restart")
		said "$pod-restart" 'all(.containers[]; .status.metadata.attempt == 1)'
	done

	pod second-off IfNotPresent-off
	pod second-on IfNotPresent-on --gate on
	pod never-again IfNotPresent-on --gate on --policy Never
	pod never-blind IfNotPresent-on --policy Never
	landed
	right second-off-run 3
	right second-on-run 3 # what another pod holds is not present to this one
	(($(layer_fetches) > layers)) || fail "the other pods fetched no layer, so this counts nothing"
	none never-again-run ErrImageNeverPull
	none never-blind-run ErrImageNeverPull

	# By the node's view it is, and pods pull with the credentials of the node.
	printf '[handlers.husk]\npresence = "node"\n' >>"$HUSK_TMP/husk.toml"
	reload
	pod third-on IfNotPresent-on --gate on
	pod never-node IfNotPresent-on --gate on --policy Never
	landed
	sed -i '/^\[handlers.husk\]/,$d' "$HUSK_TMP/husk.toml"
	reload
	right third-on-run 0
	right never-node-run 0
	delete third-on never-node Always-off Always-on IfNotPresent-off IfNotPresent-on second-off second-on never-off never-on never-again never-blind
}

@test "an ordinary pod pulled the image in full first: every policy, with the gate and without" {
	local pod
	full first
	pod held-never-on first --gate on --policy Never
	landed
	none held-never-on-run ErrImageNeverPull # it is not there for this handler
	pod held-off first
	landed
	right held-off-run 0                     # kubelet sees CRI-O's, and the record is made from it
	pod held-always-off first --policy Always
	pod held-always-on first --policy Always --gate on
	pod held-on first --gate on
	pod held-never-off first --policy Never
	landed
	right held-always-off-run 3
	right held-always-on-run 3
	right held-on-run
	right held-never-off-run 0
	launch restart held-off
	launch restart held-on --gate on
	launch restart full-first
	landed
	right held-off-restart 0
	right held-on-restart 0
	assert_eq "$(outputs full-first-restart)" "$USERS"
	delete held-never-on held-off held-always-off held-always-on held-on held-never-off full-first
}

@test "a name of any kind: what the container reports is what an ordinary one does" {
	local digest images gate
	tag users/name:base users/name:latest
	tag users/name:base users/name:kinds
	digest=$(jq -r .digest "$HUSK_TMP/tmp/users-name-base.json")
	images=(--container "tag=$TENANTS/users/name:kinds" --container "digest=$TENANTS/users/name@$digest"
		--container "both=$TENANTS/users/name:kinds@$digest" --container "bare=$TENANTS/users/name")
	launch run kinds-off --handler husk --creds "admin:$ADMIN" "${images[@]}" -- "${WHO[@]}"
	launch run kinds-on --handler husk --creds "admin:$ADMIN" "${images[@]}" --gate on -- "${WHO[@]}"
	landed
	launch run kinds --handler runc --creds "admin:$ADMIN" "${images[@]}" -- "${WHO[@]}"
	landed
	assert_eq "$(outputs kinds-run)" "1300 1300 1300 1300"
	for gate in off on; do
		assert_eq "$(outputs "kinds-$gate-run")" "1300 1300 1300 1300"
		assert_eq "$(images "kinds-$gate-run" | jq -c 'map(.[1:])')" "$(images kinds-run | jq -c 'map(.[1:])')" "image_id and image_ref"
		assert_eq "$(images "kinds-$gate-run" | jq -r '.[0][0], .[3][0]' | xargs)" "$TENANTS/users/name:kinds $TENANTS/users/name:latest"
	done
	delete kinds-off kinds-on kinds
}

@test "CRI-O holds an older image of that name, whose user is root" {
	local image gate
	push users/old:base --layer /a=old
	for image in uid name none; do tag users/old:base "users/$image:trap"; done
	ordinary_pod old trap
	assert_eq "$(outputs old-run)" "0 0 0"
	tag_all base trap
	for gate in off on; do pod "trap-$gate" trap --policy Always --gate "$gate"; done
	landed
	for gate in off on; do
		right "trap-$gate-run" 3
		said "trap-$gate-run" '[.calls[] | select(.method == "CreateContainer").request.config.linux.security_context.run_as_user]
			== [{}, {}, {}]' # root, which kubelet took the older image's user for
	done
	delete trap-off trap-on old
}

@test "runAsNonRoot and runAsUser" {
	tag_all base as
	pod non-root as --run-as-non-root
	pod explicit as --run-as-user 2000 --run-as-non-root --gate on
	landed
	assert_eq "$(outputs non-root-run)" "1234 - -"
	assert_eq "$(said non-root-run '[.containers[] | .reason // "-"] | join(" ")')" "- CreateContainerConfigError CreateContainerConfigError"
	assert_contains "$(said non-root-run '.containers[1].message')" "non-numeric user (web)"
	assert_contains "$(said non-root-run '.containers[2].message')" "will run as root"
	assert_eq "$(said non-root-run '[.calls[] | select(.method == "CreateContainer")] | length')" 1
	assert_eq "$(outputs explicit-run)" "2000 2000 2000"
	delete non-root explicit
}

@test "each credential is tried until one is right" {
	local gate
	for gate in off on; do
		tag_all base "creds-$gate"
		launch run "wrong-$gate" --handler husk --gate "$gate" --creds "alice:$WRONG" --container "c=$TENANTS/users/uid:creds-$gate" -- "${WHO[@]}"
		launch run "anonymous-$gate" --handler husk --gate "$gate" --container "c=$TENANTS/users/uid:creds-$gate" -- "${WHO[@]}"
		landed
		none "wrong-$gate-run" ErrImagePull
		none "anonymous-$gate-run" ErrImagePull
		launch run "second-$gate" --handler husk --gate "$gate" --creds "alice:$WRONG" --creds "admin:$ADMIN" \
			--container "c=$TENANTS/users/uid:creds-$gate" -- "${WHO[@]}"
		landed
		assert_eq "$(said "second-$gate-run" '[.calls[] | select(.method == "PullImage").code] | join(" ")')" "Unauthenticated OK"
		assert_eq "$(outputs "second-$gate-run")" 1234
		delete "wrong-$gate" "anonymous-$gate" "second-$gate"
	done
}

# tenant POD NAMESPACE CREDENTIAL IMAGE [FLAG...]: a tenant's pod; an empty credential is none.
tenant() {
	local creds=()
	[[ -z $3 ]] || creds=(--creds "$3")
	launch run "$1" --namespace "$2" --handler husk --ensure-secret-pulled-images "${creds[@]}" --container "c=$TENANTS/$4" "${@:5}" -- "${WHO[@]}"
}

# denied NAME-VERB: it was made to pull, was refused, and has no container.
denied() {
	none "$1" ErrImagePull || return 1
	assert_eq "$(said "$1" '[.calls[] | select(.method == "PullImage").code] | unique | join(" ")')" "Unauthenticated" "pulls of $1"
}

@test "KEP-2535: an image that one tenant pulled with a secret is no other's for being there" {
	local gate
	push tenants/alice:1 --user 1234 --layer /a=tenants
	push tenants/bob:1 --user 1234 --layer /a=tenants
	for gate in off on; do
		tag tenants/alice:1 "tenants/alice:$gate"
		tag tenants/bob:1 "tenants/bob:$gate"
		tenant "alice-$gate" alice "alice:$ALICE" "tenants/alice:$gate" --gate "$gate"
	done
	landed
	for gate in off on; do
		assert_eq "$(outputs "alice-$gate-run")" 1234
		jq -e --arg ref "$(said "alice-$gate-run" '.containers[0].status.image_id')" '.pulled | has($ref)' "$HUSK_TMP/kubelet/pulled.json"
		# Bob has the same image in a repository of his own, and no right to Alice's.
		tenant "bob-own-$gate" bob "bob:$BOB" "tenants/bob:$gate" --gate "$gate"
		tenant "bob-$gate" bob "bob:$BOB" "tenants/alice:$gate" --gate "$gate"
		tenant "bob-always-$gate" bob "bob:$BOB" "tenants/alice:$gate" --policy Always --gate "$gate"
		tenant "bob-wrong-$gate" bob "alice:$WRONG" "tenants/alice:$gate" --gate "$gate"
		tenant "bob-bare-$gate" bob "" "tenants/alice:$gate" --gate "$gate"
		tenant "bob-never-$gate" bob "bob:$BOB" "tenants/alice:$gate" --policy Never --gate "$gate"
		# Alice again: her second pod does not hold it.
		tenant "alice-again-$gate" alice "alice:$ALICE" "tenants/alice:$gate" --gate "$gate"
		landed
		assert_eq "$(outputs "bob-own-$gate-run")" 1234
		assert_eq "$(said "bob-own-$gate-run" '.containers[0].imageRef')" "$(said "alice-$gate-run" '.containers[0].imageRef')" "the image itself"
		for pod in bob bob-always bob-wrong bob-bare; do denied "$pod-$gate-run"; done
		none "bob-never-$gate-run" ErrImageNeverPull
		assert_eq "$(outputs "alice-again-$gate-run")" 1234
		assert_eq "$(said "alice-again-$gate-run" .pulls)" 1 "pulls of Alice's second pod"
		delete "alice-$gate" "bob-own-$gate" "bob-$gate" "bob-always-$gate" "bob-wrong-$gate" "bob-bare-$gate" "bob-never-$gate" "alice-again-$gate"
	done
}

# no_pods removes what earlier tests have left, when they failed.
no_pods() {
	local pod
	for pod in $(cri pods -q); do cri rmp -f "$pod"; done
}

# one NAME IMAGE HANDLER: a pod with a container.
one() { launch run "$1" --handler "$3" --policy Always --creds "admin:$ADMIN" --container "c=$TENANTS/$2" -- "${WHO[@]}"; }

# has_images ID[,HANDLER]...: they are listed, and nothing else that is not pinned.
has_images() {
	assert_eq "$(cri images -o json | jq -r '.images[] | select(.pinned | not) | [.id, (.spec.runtimeHandler // "" | select(. != ""))] | join(",")' | sort | xargs)" \
		"$(printf '%s\n' "$@" | sort | xargs)" images
}

@test "image garbage collection: what is used stays, under whichever handler; what is not goes" {
	local image used unused plain both
	no_pods
	for image in used unused plain both; do push "gc/$image:1" --layer "/a=$image"; done
	used=$(image_id gc/used:1) unused=$(image_id gc/unused:1) plain=$(image_id gc/plain:1) both=$(image_id gc/both:1)
	one gc-used gc/used:1 husk
	one gc-unused gc/unused:1 husk
	one gc-plain gc/plain:1 runc
	one gc-both-husk gc/both:1 husk
	one gc-both-runc gc/both:1 runc
	landed
	delete gc-unused gc-both-husk

	# Without the gate kubelet goes by image IDs alone.
	launch gc gc-off
	landed
	said gc-off-gc '.refused == {}'
	assert_contains "$(said gc-off-gc '.removed | join(" ")')" "$unused"
	has_images "$used,husk" "$plain" "$both" "$both,husk"

	# With it, by ID and handler; but it does not name the handler when it removes.
	one gc-unused-again gc/unused:1 husk
	landed
	delete gc-unused-again
	launch gc gc-on --gate on
	landed
	assert_eq "$(said gc-on-gc '.removed | join(" ")')" "$unused,husk"
	assert_eq "$(said gc-on-gc '.refused | keys | join(" ")')" "$both,husk"
	assert_contains "$(said gc-on-gc '.refused[]')" "in use"
	has_images "$used,husk" "$plain" "$both" "$both,husk"
	# A kubelet that names it removes the record, and CRI-O's own stays.
	launch gc gc-named --gate on --name-handler
	landed
	assert_eq "$(said gc-named-gc '.removed | join(" ")')" "$both,husk"
	said gc-named-gc '.refused == {}'
	has_images "$used,husk" "$plain" "$both"

	# All that are used run again without a word to the registry, but for kubelet's own pull.
	launch restart gc-used
	launch restart gc-plain
	launch restart gc-both-runc
	landed
	assert_eq "$(outputs gc-used-restart) $(outputs gc-plain-restart) $(outputs gc-both-runc-restart)" "0 0 0"
	delete gc-used gc-plain gc-both-runc
	launch gc gc-end
	landed
	has_images
}

# shellcheck disable=SC2031 # another test's OUT was its own
@test "no log holds a credential" {
	local word
	for word in "$ADMIN" "$ALICE" "$BOB" "$GUEST" "$WRONG"; do refute_in_logs "$word"; done
	run ! grep -rlF -e "$ADMIN" -e "$ALICE" -e "$BOB" -e "$WRONG" "$OUT"
}
