#!/usr/bin/env bash
# What the tests with kubelet's own calls (test/kubelet) share: a registry whose users may see different repositories, images
# with three users, and pods. To be loaded after helpers.

PASSWD='web:x:1300:1300:web:/home/web:/bin/sh'
readonly ADMIN=Kubelet-Admin-1 ALICE=Kubelet-Alice-2 BOB=Kubelet-Bob-3 GUEST=Kubelet-Guest-4 WRONG=Kubelet-Wrong-5
# Whom the containers uid, name and none of every pod here run as.
readonly USERS='1234 1300 0'

# ---- the registry and its images ----

# tool NAME: the path of a command below test/, which is built unless the Makefile has done so.
tool() {
	local built=$HUSK_BIN_DIR/$1
	if [[ ! -x $built ]]; then
		built=$BATS_FILE_TMPDIR/$1
		CGO_ENABLED=0 go -C "$HUSK_ROOT" build -tags "containers_image_openpgp exclude_graphdriver_btrfs" -o "$built" "./test/$1" || return 1
	fi
	echo "$built"
}

# tenants_up starts the tenants' registry as a daemon of the node, and makes CRI-O, husk and the guests trust it: it
# speaks TLS, because guests give the node's credentials to no registry that nothing verifies. It has the three images by
# the tag base.
tenants_up() {
	KUBELET=$(tool kubelet)
	FAKEREGISTRY=$(tool fakeregistry)
	# CRI-O and husk have no setting for certs.d: they look in their home first.
	export KUBELET TENANTS=$NODE_IP:5580 REQUESTS=$HUSK_TMP/tenants.jsonl OUT=$HUSK_TMP/out CERTS=$NODE_DIR/home/.config/containers/certs.d
	mkdir -p "$OUT"
	local who
	for who in admin:$ADMIN alice:$ALICE bob:$BOB guest:$GUEST alice:$WRONG; do credential "${who%%:*}" "${who#*:}"; done
	jq -n --arg r "$TENANTS" --arg a "$(printf 'guest:%s' $GUEST | base64 -w0)" '{auths: {($r): {auth: $a}}}' >"$HUSK_TMP/guest-auth.json"
	printf '%s = "%s"\n' auth_file "$HUSK_TMP/guest-auth.json" certs_dir "$CERTS" >>"$HUSK_TMP/shim.toml"
	testnode start --dir "$NODE_DIR" tenants "$FAKEREGISTRY" --listen "$TENANTS" --log "$REQUESTS" --certs-d "$CERTS" \
		--user admin:$ADMIN --user guest:$GUEST --user "alice:$ALICE=tenants/alice" --user "bob:$BOB=tenants/bob"
	eventually 10 tenants_curl "$TENANTS/v2/" || return 1
	local pids=()
	base_image uid 1234 & pids+=("$!")
	base_image name web & pids+=("$!")
	base_image none "" & pids+=("$!")
	for who in "${pids[@]}"; do wait "$who" || return 1; done
}

# tenants_curl ARGUMENT...: curl, which speaks to that registry alone.
tenants_curl() { curl -s --cacert "$CERTS/$TENANTS/ca.crt" --proto-default https "$@"; }

# push NAME:TAG [FLAG OF mkimage build...]: builds an image and pushes it to the tenants' registry.
push() {
	local slug=${1//[:\/]/-}
	"$HUSK_BIN_DIR/mkimage" build --output "oci:$HUSK_TMP/tmp/$slug:latest" --summary "$HUSK_TMP/tmp/$slug.json" \
		--passwd "$PASSWD" --group 'web:x:1300:' "${@:2}" >&2 || return 1
	skopeo copy -q --all --insecure-policy --dest-cert-dir "$CERTS/$TENANTS" --dest-creds "admin:$ADMIN" \
		"oci:$HUSK_TMP/tmp/$slug:latest" "docker://$TENANTS/$1" >&2
}

base_image() { push "users/$1:base" --user "$2" --layer "/a=$1"; }

# tag FROM TO: another name, in whatever repository, for an image of the registry whose blobs are there.
tag() {
	local file=$HUSK_TMP/tmp/manifest-$RANDOM$RANDOM type=application/vnd.oci.image.manifest.v1+json
	tenants_curl -f -u "admin:$ADMIN" -H "Accept: $type" -o "$file" "$TENANTS/v2/${1%:*}/manifests/${1#*:}" &&
		tenants_curl -f -u "admin:$ADMIN" -X PUT -H "Content-Type: $type" --data-binary "@$file" "$TENANTS/v2/${2%:*}/manifests/${2#*:}"
}

# tag_all FROM TO: tags the three images.
tag_all() {
	local image
	for image in uid name none; do tag "users/$image:$1" "users/$image:$2" || return 1; done
}

three() { printf -- '--container\n%s=%s\n' uid "$TENANTS/users/uid:$1" name "$TENANTS/users/name:$1" none "$TENANTS/users/none:$1"; }

# image_id NAME:TAG: the image ID of what push built.
image_id() { jq -r '.instances[0].configDigest | ltrimstr("sha256:")' "$HUSK_TMP/tmp/${1//[:\/]/-}.json"; }

# ---- pods ----

kubelet() {
	"$KUBELET" "$1" --socket "$CRI_SOCK" --dir "$HUSK_TMP/kubelet" --cgroup-parent "$CGROUP_PARENT" --dns "$NODE_IP" "${@:2}" 3>&-
}

# launch VERB NAME [FLAG...]: one run of kubelet beside others; its answer is in $OUT/NAME-VERB.json. landed waits for all.
launch() {
	kubelet "$1" --name "$2" "${@:3}" >"$OUT/$2-$1.json" &
	STARTED+=("$!")
}
STARTED=()
landed() {
	local pid failed=0
	for pid in "${STARTED[@]}"; do wait "$pid" || failed=1; done
	STARTED=()
	((failed == 0)) || fail "a kubelet failed"
}

# shellcheck disable=SC2016
WHO=(/bin/sh -c "id -u; ${SLEEP[2]}")

# pod NAME TAG [FLAG...]: starts a pod with the three images, beside others.
pod() {
	local images
	mapfile -t images < <(three "$2")
	launch run "$1" --handler husk --creds "admin:$ADMIN" "${images[@]}" "${@:3}" -- "${WHO[@]}"
}

# said NAME-VERB [FLAG OF jq...] JQ: of a run's answer.
said() { jq -er "${@:2}" "$OUT/$1.json"; }

outputs() { said "$1" '[.containers[] | .output // "-"] | join(" ")'; }

# right NAME-VERB [PULLS]: all three run, as whom their images say, and report what they should.
right() {
	assert_eq "$(outputs "$1")" "$USERS" "users of $1" || return 1
	[[ -z ${2:-} ]] || assert_eq "$(said "$1" .pulls)" "$2" "pulls of $1" || return 1
	said "$1" >/dev/null '.containers | length == 3 and all(.[];
		.status.state == "CONTAINER_RUNNING" and (.imageRef | test("^[0-9a-f]{64}$")) and .status.image_id == .imageRef
		and (.status.image_ref | test("/users/[a-z]+@sha256:[0-9a-f]{64}$"))
		and (.status.image.image | test("/users/[a-z]+:[a-zA-Z-]+$")))' || fail "status of $1: $(said "$1" '.containers[].status')"
}

# none NAME-VERB REASON: no container was made, because of that.
none() {
	assert_eq "$(said "$1" '[.containers[].reason] | unique | join(" ")')" "$2" "reason of $1" || return 1
	said "$1" 'all(.calls[]; .method != "CreateContainer")' >/dev/null || fail "$1 made a container"
}

# images NAME-VERB: what the containers report of their images.
images() { said "$1" '[.containers[].status | [.image.image, .image_id, .image_ref]]'; }

# ordinary_pod NAME TAG: a pod of an ordinary handler has the three images pulled in full.
ordinary_pod() {
	local images
	mapfile -t images < <(three "$2")
	launch run "$1" --handler runc --policy Always --creds "admin:$ADMIN" "${images[@]}" -- "${WHO[@]}"
	landed
}

# full TAG: three images of their own, which an ordinary pod pulls in full.
full() {
	local image
	for image in uid:1234 name:web none:; do push "users/${image%:*}:$1" --user "${image#*:}" --layer "/a=$1" || return 1; done
	ordinary_pod "full-$1" "$1"
	assert_eq "$(outputs "full-$1-run")" "$USERS"
}

# delete NAME...: deletes pods as kubelet does; nothing of them is left in CRI-O.
delete() {
	local pod ids
	for pod; do launch delete "$pod"; done
	landed || return 1
	ids=$(cri ps -a -o json | jq -r '.containers[].podSandboxId')
	for pod; do
		refute_contains "$ids" "$(said "$pod-run" .sandbox)" || return 1
		said "$pod-delete" 'all(.calls[]; .code == "OK")' >/dev/null || return 1
	done
}

# asked JQ: how many requests to the registry are like that.
asked() { jq -s "[.[] | select($1)] | length" "$REQUESTS"; }
layer_fetches() { asked '.user == "guest" and (.path | contains("/blobs/")) and .status == 200'; }
