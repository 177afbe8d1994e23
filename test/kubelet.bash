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

# tenants_up [FLAG OF fakeregistry...] starts the tenants' registry as a daemon of the node, and makes CRI-O, husk and the
# guests trust it. It speaks TLS: guests give the node's credentials to no registry that nothing verifies.
tenants_up() {
	KUBELET=$(tool kubelet)
	FAKEREGISTRY=$(tool fakeregistry)
	# CRI-O and husk have no setting for certs.d: they look in their home first.
	export KUBELET FAKEREGISTRY TENANTS=$NODE_IP:5580 REQUESTS=$HUSK_TMP/tenants.jsonl OUT=$HUSK_TMP/out CERTS=$NODE_DIR/home/.config/containers/certs.d
	mkdir -p "$OUT"
	local who
	for who in admin:$ADMIN alice:$ALICE bob:$BOB guest:$GUEST alice:$WRONG; do credential "${who%%:*}" "${who#*:}"; done
	echo "certs_dir = \"$CERTS\"" >>"$HUSK_TMP/shim.toml"
	testnode start --dir "$NODE_DIR" tenants "$FAKEREGISTRY" --listen "$TENANTS" --log "$REQUESTS" --certs-d "$CERTS" "$@" \
		--user admin:$ADMIN --user guest:$GUEST --user "alice:$ALICE=tenants/alice" --user "bob:$BOB=tenants/bob"
	eventually 10 tenants_curl "$TENANTS/v2/"
}

# guest_credential lets guests pull from that registry without a secret of their pod.
guest_credential() {
	jq -n --arg r "$TENANTS" --arg a "$(printf 'guest:%s' $GUEST | base64 -w0)" '{auths: {($r): {auth: $a}}}' >"$HUSK_TMP/guest-auth.json"
	echo "auth_file = \"$HUSK_TMP/guest-auth.json\"" >>"$HUSK_TMP/shim.toml"
}

# base_images gives the registry the three images by the tag base.
base_images() {
	local pid pids=()
	base_image uid 1234 & pids+=("$!")
	base_image name web & pids+=("$!")
	base_image none "" & pids+=("$!")
	for pid in "${pids[@]}"; do wait "$pid" || return 1; done
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

# message NAME-VERB: why the container of a pod of one does not run.
message() { said "$1" '.containers[0].message'; }

# again NAME [FLAG...]: the next sync of a pod; "--after 15s" is past the back-off.
again() { launch sync "$1" "${@:2}"; }

# refused NAME REASON TEXT...: the run of a pod has failed in its pull with that reason and text.
refused() {
	local text
	none "$1-run" "$2" || return 1
	for text in "${@:3}"; do assert_contains "$(message "$1-run")" "$text" || return 1; done
}

# backs_off NAME: the next sync says why there is no image, and asks nobody.
backs_off() {
	none "$1-sync" ImagePullBackOff || return 1
	said "$1-sync" '.pulls == 0' || fail "$1 pulled again at once"
	assert_contains "$(message "$1-sync")" "$(said "$1-run" '.containers[0].reason')"
}

# pulls_again NAME: the sync after that has pulled, and its container runs.
pulls_again() {
	assert_eq "$(said "$1-sync" .pulls)" 1 "pulls of $1" || return 1
	assert_eq "$(outputs "$1-sync")" 1234
}

# in_sandbox SANDBOX COMMAND...: in the mount namespace of the pod's shim, which alone sees the pod's store.
in_sandbox() { nsenter -t "$(pgrep -f "containerd-shim-husk-v2.*$1" | head -1)" -m "${@:2}"; }

# ---- requests and faults ----

# layers_of NAME:TAG: the digests of the layers of what push built, the lowest first.
layers_of() { jq -r '.instances[0].layers[].digest' "$HUSK_TMP/tmp/${1//[:\/]/-}.json"; }

# faults [MATCH=FAULT...]: from now on the registry, started with --faults "$FAULTS", has these; none, and it is honest.
faults() {
	printf '%s\n' "$@" >"$FAULTS.new"
	mv "$FAULTS.new" "$FAULTS"
}

mark() { wc -l <"$REQUESTS"; }

# requests JQ prints the registry's requests since MARK that are like that, with "from", the address that asked.
requests() { tail -n "+$((MARK + 1))" "$REQUESTS" | jq -c ".from = (.remote | split(\":\")[0]) | select($1)"; }

# asked JQ: how many requests to the registry are like that.
asked() { jq -s "[.[] | select($1)] | length" "$REQUESTS"; }

# layer_fetches: how many blobs it has sent to pods.
layer_fetches() { asked '(.remote | startswith("'"$NODE_IP"':") | not) and (.path | contains("/blobs/")) and .status == 200'; }
