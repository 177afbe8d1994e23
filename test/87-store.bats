#!/usr/bin/env bats
# The pod's store on a real node: in memory and on a disk, its bound, user namespaces, volumes and images as volumes.

# Each test sets pod, image and ctr for itself.
# shellcheck disable=SC2030,SC2031

load helpers

setup_file() {
	node_up
	husk_start
	cp "$HUSK_TMP/shim.toml" "$HUSK_TMP/shim.default"
	mkdir -m 700 "$HUSK_TMP/stores"
}

teardown_file() {
	nodes_down
}

teardown() {
	show_logs_on_failure
	[[ ! -f $HUSK_TMP/shim.default ]] || cp "$HUSK_TMP/shim.default" "$HUSK_TMP/shim.toml"
}

# shim_toml LINE...: lines of the shim's configuration for the pods of this test.
shim_toml() {
	{
		cat "$HUSK_TMP/shim.default"
		printf 'store_dir = "%s"\n' "$HUSK_TMP/stores"
		printf '%s\n' "$@"
	} >"$HUSK_TMP/shim.toml"
}

# pod_with NAME REFERENCE [JQ [-- COMMAND...]]: a pod of one container; sets pod, image and ctr. POD_JQ changes the pod.
pod_with() {
	local name=$1 ref=$2
	shift 2
	pod=$(run_pod "$name" husk "${POD_JQ:-.}")
	image=$(pull_image "$ref" "$name")
	ctr=$(run_ctr "$pod" "$name" c "$image=$ref" "$@")
}

# in_shim POD COMMAND...: runs a command in the mount namespace of a pod's shim.
in_shim() {
	local pid
	pid=$(pgrep -f -- "-id $1 -address") || return 1
	shift
	nsenter -t "$pid" -m -- "$@"
}

# ctr_pid CTR prints the container's first process, as the host has it.
ctr_pid() { runc --root "$HUSK_TMP/state/runc/default" state "$1" | jq -er .pid; }

USERNS='.linux.security_context.namespace_options.userns_options = {
	mode: 0, uids: [{host_id: 300000, container_id: 0, length: 65536}], gids: [{host_id: 400000, container_id: 0, length: 65536}]}'

# limit_pod NAME BYTES: the memory limit of the pod's cgroup, NAME, which lies in the node's.
limit_pod() {
	local group=/sys/fs/cgroup/memory$CGROUP_PARENT/$1 file=memory.limit_in_bytes
	if [[ ! -d /sys/fs/cgroup/memory ]]; then
		group=/sys/fs/cgroup$CGROUP_PARENT/$1 file=memory.max
	fi
	echo "$2" >"$group/$file"
}

# store_bytes POD prints how large the pod's store is.
store_bytes() { echo $(($(in_shim "$1" stat -f -c '%b * %S' "/run/husk/pods/$1/store"))); }

# pulled_and_created POD NAME CTR REFERENCE: what kubelet does. A pull may fail for either.
pulled_and_created() {
	local image
	image=$(pull_image "$4" "$2") && create_ctr "$1" "$2" "$3" "$image=$4" -- "${SLEEP[@]}"
}

# push_tar NAME:TAG TAR: pushes an image whose only layer is an archive, and prints its reference.
push_tar() {
	local dir=$HUSK_TMP/tmp/${1//[:\/]/-}-tar size diff
	mkdir -p "$dir/blobs/sha256"
	put() { # FILE: stores it as a blob and prints its digest
		local digest
		digest=$(sha256sum "$1" | cut -d' ' -f1)
		cp "$1" "$dir/blobs/sha256/$digest"
		echo "sha256:$digest"
	}
	diff=$(put "$2")
	size=$(stat -c %s "$2")
	jq -nc --arg d "$diff" '{architecture: "amd64", os: "linux", rootfs: {type: "layers", diff_ids: [$d]}, config: {}}' >"$dir/config"
	jq -nc --arg d "$diff" --argjson s "$size" --arg c "$(put "$dir/config")" --argjson n "$(stat -c %s "$dir/config")" '{
		schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json",
		config: {mediaType: "application/vnd.oci.image.config.v1+json", digest: $c, size: $n},
		layers: [{mediaType: "application/vnd.oci.image.layer.v1.tar", digest: $d, size: $s}]}' >"$dir/manifest"
	jq -nc --arg m "$(put "$dir/manifest")" --argjson n "$(stat -c %s "$dir/manifest")" '{schemaVersion: 2, manifests: [
		{mediaType: "application/vnd.oci.image.manifest.v1+json", digest: $m, size: $n, annotations: {"org.opencontainers.image.ref.name": "latest"}}]}' >"$dir/index.json"
	echo '{"imageLayoutVersion": "1.0.0"}' >"$dir/oci-layout"
	push_layout "$dir:latest" "$1"
}

# ---- its size ----

# pod_memory NAME prints how many bytes the pod's cgroup, NAME, is charged for.
pod_memory() {
	if [[ -d /sys/fs/cgroup/memory ]]; then
		cat "/sys/fs/cgroup/memory$CGROUP_PARENT/$1/memory.usage_in_bytes"
	else
		cat "/sys/fs/cgroup$CGROUP_PARENT/$1/memory.current"
	fi
}

pod_memory_under() { (($(pod_memory "$1") < $2)); }

@test "layers in memory are the pod's memory, and leave with it" {
	local ref before after
	ref=$(push_image charged:1 --layer-random 32MiB)
	pod=$(run_pod charged husk ".linux.cgroup_parent = \"$CGROUP_PARENT/charged\"")
	before=$(pod_memory charged)
	image=$(pull_image "$ref" charged)
	ctr=$(run_ctr "$pod" charged c "$image=$ref" -- "${SLEEP[@]}")
	after=$(pod_memory charged)
	((after - before >= 32 << 20)) || fail "the pod is charged for $((after - before)) bytes more"
	crictl rmp -f "$pod"
	eventually 10 pod_memory_under charged $((32 << 20))
}

@test "the store's size follows the pod's memory limit" {
	local ref
	ref=$(push_image size:1 --layer /a=1)
	pod=$(run_pod size husk ".linux.cgroup_parent = \"$CGROUP_PARENT/size\"")
	limit_pod size $((128 << 20))
	image=$(pull_image "$ref" size)
	ctr=$(run_ctr "$pod" size c "$image=$ref" -- "${SLEEP[@]}")
	assert_eq "$(store_bytes "$pod")" $((64 << 20)) # half of it
	limit_pod size $((256 << 20))
	ctr=$(run_ctr "$pod" size d "$image=$ref" -- "${SLEEP[@]}")
	assert_eq "$(store_bytes "$pod")" $((128 << 20))
	crictl rmp -f "$pod"
}

@test "a pull that cannot fit is refused with the numbers, before any layer is asked for" {
	local ref mark store
	ref=$(push_image large:1 --layer-random 8MiB)
	mapfile -t layers < <(layer_digests "$ref")
	for store in memory disk; do
		shim_toml "store = \"$store\"" 'store_size = "4m"'
		pod=$(run_pod "large-$store" husk)
		mark=$(log_mark)
		run ! pulled_and_created "$pod" "large-$store" c "$ref"
		assert_contains "$output" "bytes, the store has room for"
		assert_contains "$output" " of 4194304"
		assert_contains "$output" "${ref%:*}@sha256:"
		assert_eq "$(blob_requests "$mark" "" "${layers[@]}")" 0 "requests for layers"
		# It is the image that is too large, not the pod.
		run -0 pulled_and_created "$pod" "large-$store" d "$REGISTRY/busybox:latest"
		crictl rmp -f "$pod"
	done
}

@test "layers are shared by a pod's containers and by the restarts of one" {
	local ref mark other
	ref=$(push_image shared:1 --layer /a=1 --layer-random 1MiB)
	mapfile -t layers < <(layer_digests "$ref")
	mark=$(log_mark)
	pod_with shared "$ref" -- "${SLEEP[@]}"
	assert_eq "$(blob_requests "$mark" "$(pod_ip "$pod")" "${layers[@]}")" "${#layers[@]}"
	mark=$(log_mark)
	other=$(run_ctr "$pod" shared other "$image=$ref" -- "${SLEEP[@]}")
	run -0 crictl exec -s "$other" sh -c 'echo other >/a'
	assert_eq "$(crictl exec -s "$ctr" cat /a)" 1 "what a container writes is its own"
	crictl stop -t 1 "$ctr"
	crictl rm "$ctr"
	ctr=$(run_ctr "$pod" shared c "$image=$ref" '.metadata.attempt = 1' -- "${SLEEP[@]}")
	assert_eq "$(crictl exec -s "$ctr" cat /a)" 1
	assert_eq "$(blob_requests "$mark" "" "${layers[@]}")" 0 "requests for layers"
	crictl rmp -f "$pod"
}

# ---- on a disk ----

@test "a store on disk: root's alone, read by containers, and gone with the pod" {
	shim_toml 'store = "disk"'
	pod_with disk "$(push_image disk:1 --layer /a=secret)" -- "${SLEEP[@]}"
	assert_eq "$(crictl exec -s "$ctr" cat /a)" secret
	assert_eq "$(stat -c '%a %u %F' "$HUSK_TMP/stores/$pod")" "700 0 directory"
	run -0 grep -rlx secret "$HUSK_TMP/stores/$pod/images"
	run -0 crictl exec -s "$ctr" sh -c 'echo written >/b'
	run -0 grep -rlx written "$HUSK_TMP/stores/$pod/containers"
	# No mount of the shim's is the host's.
	run ! grep -F -e "$HUSK_TMP/stores" -e "/run/husk/pods/$pod" /proc/self/mountinfo
	crictl rmp -f "$pod"
	test ! -e "$HUSK_TMP/stores/$pod"
}

@test "a store on disk goes with a pod whose shim was killed" {
	shim_toml 'store = "disk"'
	pod_with killed "$(push_image killed:1 --layer /a=secret)" -- "${SLEEP[@]}"
	kill -9 "$(pgrep -f -- "-id $pod -address")"
	eventually 20 ctr_exited "$ctr"
	eventually 10 test ! -e "$HUSK_TMP/stores/$pod" # it does not wait for CRI-O
	crictl rmp -f "$pod"
	eventually 10 test ! -e "/run/husk/pods/$pod"
}

@test "a store on disk goes with a pod whose shim and keeper were killed, by the framework's delete" {
	local bundle
	node_up # its CRI-O has a pod from then on that it can neither reach nor remove
	husk_start
	cp "$HUSK_TMP/shim.toml" "$HUSK_TMP/shim.default"
	shim_toml 'store = "disk"'
	pod_with both "$(push_image both:1 --layer /a=secret)" -- "${SLEEP[@]}"
	bundle=$(jq -r .bundle "/run/husk/pods/$pod/containers/$pod.json")
	kill -9 "$(pgrep -f "^husk-keeper .*$pod")"
	kill -9 "$(pgrep -f -- "-id $pod -address")"
	(cd "$bundle" && "$HUSK_BIN_DIR/containerd-shim-husk-v2" -namespace default -id "$pod" -address "" -bundle "$bundle" delete >/dev/null)
	test ! -e "$HUSK_TMP/stores/$pod"
	test ! -e "/run/husk/pods/$pod"
	node_down
}

@test "stores that a pod left on disk before the machine went down go when the next pod comes, and no others" {
	local left=$HUSK_TMP/stores/0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
	local canary=$HUSK_TMP/tmp/canary alive
	shim_toml 'store = "disk"'
	pod_with alive "$(push_image left:1 --layer /a=secret)" -- "${SLEEP[@]}"
	alive=$pod
	mkdir -p "$canary" "$left/images/layers" # its state, on /run, is gone
	echo unharmed >"$canary/file"
	ln -s "$canary" "$left/images/layers/link"
	shim_toml 'store = "memory"' # the operator has turned away from disks since
	pod_with next "$(push_image left:2 --layer /a=2)" -- "${SLEEP[@]}"
	test ! -e "$left"
	test -d "$HUSK_TMP/stores/$alive"
	assert_eq "$(cat "$canary/file")" unharmed
	crictl rmp -f "$pod"
	crictl rmp -f "$alive"
}

@test "a directory of stores that others may write to, or that is not Husk's, is refused" {
	local ref dir=$HUSK_TMP/open
	ref=$(push_image open:1 --layer /a=1)
	mkdir -m 777 "$dir"
	shim_toml 'store = "disk"'
	sed -i "s|^store_dir = .*|store_dir = \"$dir\"|" "$HUSK_TMP/shim.toml"
	pod=$(run_pod open husk)
	run ! pulled_and_created "$pod" open c "$ref"
	assert_contains "$output" "others than its owner may write to it"
	chmod 700 "$dir"
	mkdir "$dir/precious"
	run ! pulled_and_created "$pod" open c "$ref"
	assert_contains "$output" "not Husk's, such as precious"
	test -d "$dir/precious"
	rmdir "$dir/precious"
	run -0 pulled_and_created "$pod" open c "$ref"
	crictl rmp -f "$pod"
	test ! -e "$dir/$pod"
}

# ---- user namespaces ----

@test "a user namespace: the image's files are the container's, and nothing of the host's root is" {
	local store host=$HUSK_TMP/tmp/host
	mkdir -p "$host/mine"
	echo roots >"$host/secret"
	chmod 600 "$host/secret"
	chmod 755 "$host" "$HUSK_TMP" "$HUSK_TMP/tmp"
	chown 300000:400000 "$host/mine"
	for store in memory disk; do
		shim_toml "store = \"$store\""
		POD_JQ=$USERNS pod_with "userns-$store" "$(push_image userns:1 --layer /a=1 --layer /b=2)" \
			".mounts = [{container_path: \"/host\", host_path: \"$host\"}]" -- "${SLEEP[@]}"
		# Inside it is root, and the image's files are root's.
		assert_eq "$(crictl exec -s "$ctr" id -u)" 0
		assert_eq "$(crictl exec -s "$ctr" stat -c %u:%g /bin/sh /a /)" $'0:0\n0:0\n0:0'
		# It may do with them what root does: write, give away, remove.
		run -0 crictl exec -s "$ctr" sh -c 'echo more >>/a && chown 5:6 /b && rm /bin/yes && mkdir -p /new/dir && cat /a && stat -c %u:%g /b /new/dir'
		assert_eq "$output" $'1more\n5:6\n0:0'
		# The host sees another user.
		assert_eq "$(awk '/^[UG]id/ {print $2}' "/proc/$(ctr_pid "$ctr")/status" | xargs)" "300000 400000"
		assert_eq "$(crictl exec -s "$ctr" cat /proc/self/uid_map | xargs)" "0 300000 65536"
		# So root inside has no power over what is the host's root's.
		run ! crictl exec -s "$ctr" cat /host/secret
		assert_contains "$output" "Permission denied"
		assert_eq "$(crictl exec -s "$ctr" stat -c %u:%g /host/secret)" 65534:65534
		run ! crictl exec -s "$ctr" sh -c 'echo x >/host/new'
		run ! crictl exec -s "$ctr" chown 0:0 /host/secret
		run ! crictl exec -s "$ctr" mknod /sda b 254 0
		run -0 crictl exec -s "$ctr" sh -c 'echo x >/host/mine/new'
		assert_eq "$(stat -c %u:%g "$host/mine/new")" 300000:400000
		crictl rmp -f "$pod"
		test ! -e "/run/husk/pods/$pod"
		assert_eq "$(find /run/husk-rootfs -mindepth 1)" "" "the host sees no root file system"
	done
	assert_eq "$(cat "$host/secret")" roots
}

@test "a user namespace: the image's user, its volume and working directory, and a second container" {
	local other ref
	ref=$(push_image userns:2 --user web --passwd web:x:1000:1001::/home/web:/bin/sh --volume /data --workdir /work/in)
	POD_JQ=$USERNS pod_with users "$ref" -- "${SLEEP[@]}"
	assert_eq "$(crictl exec -s "$ctr" id -u):$(crictl exec -s "$ctr" id -g)" 1000:1001
	assert_eq "$(awk '/^[UG]id/ {print $2}' "/proc/$(ctr_pid "$ctr")/status" | xargs)" "301000 401001"
	assert_eq "$(crictl exec -s "$ctr" stat -c %u:%g /data /work/in)" $'1000:1001\n0:0'
	run -0 crictl exec -s "$ctr" sh -c 'echo x >/data/f && stat -c %u:%g /data/f'
	assert_eq "$output" 1000:1001
	run ! crictl exec -s "$ctr" sh -c 'echo x >/etc/passwd'
	other=$(run_ctr "$pod" users other "$image=$ref" '.linux.security_context.run_as_user.value = 0' -- "${SLEEP[@]}")
	run -0 crictl exec -s "$other" sh -c 'echo "root::0:0::/:/bin/sh" >/etc/passwd && test ! -e /data/f'
	assert_contains "$(crictl exec -s "$ctr" cat /etc/passwd)" web
	crictl rmp -f "$pod"
}

@test "a user namespace that has no user for the image's root is refused" {
	local ref
	ref=$(push_image userns:3 --layer /a=1 --user 1000)
	pod=$(run_pod tiny husk "${USERNS//65536/1000}")
	image=$(pull_image "$ref" tiny)
	run ! create_ctr "$pod" tiny c "$image=$ref" -- "${SLEEP[@]}"
	assert_contains "$output" "1000"
	crictl rmp -f "$pod"
}

# ---- root file systems and volumes ----

@test "a read-only root file system with a working directory that the image lacks" {
	pod_with readonly "$(push_image readonly:1 --layer /a=1 --workdir /work/in)" '.linux.security_context.readonly_rootfs = true' -- "${SLEEP[@]}"
	assert_eq "$(crictl exec -s "$ctr" pwd)" /work/in
	run ! crictl exec -s "$ctr" touch /work/in/f
	assert_contains "$output" "Read-only"
	crictl rmp -f "$pod"
}

@test "fsGroup: a volume of a group that the process is in besides its own" {
	local dir=$HUSK_TMP/tmp/fsgroup
	mkdir -p "$dir"
	chmod 755 "$HUSK_TMP" "$HUSK_TMP/tmp"
	chown 0:4321 "$dir" # as kubelet prepares it
	chmod 2770 "$dir"
	pod_with fsgroup "$(push_image fsgroup:1 --user 1000:1000)" \
		".linux.security_context.supplemental_groups = [4321, 99] | .mounts = [{container_path: \"/v\", host_path: \"$dir\"}]" -- "${SLEEP[@]}"
	assert_eq "$(crictl exec -s "$ctr" sh -c 'echo x >/v/f; stat -c %u:%g /v/f; id -G')" $'1000:4321\n1000 99 4321'
	crictl rmp -f "$pod"
}

@test "an image's volume has the image's content, whatever CRI-O's image_volumes is" {
	local how ref
	ref=$(push_image volumes:1 --layer '/data/file=the image' --volume /data --volume /made/dir --user 1000:1001)
	for how in mkdir bind ignore; do
		printf '[crio.image]\nimage_volumes = "%s"\n' "$how" >"$NODE_DIR/conf/crio.conf.d/87-volumes.conf"
		crio_restart
		eventually 20 crictl version
		pod_with "volumes-$how" "$ref" '.linux.security_context.readonly_rootfs = true' -- "${SLEEP[@]}"
		assert_eq "$(crictl exec -s "$ctr" cat /data/file)" "the image" "$how"
		assert_eq "$(crictl exec -s "$ctr" stat -c %u:%g /made/dir)" 1000:1001 "$how"
		# As of an image that CRI-O pulled itself, it is a mount of its own with "bind" alone.
		if [[ $how == bind ]]; then
			run -0 crictl exec -s "$ctr" sh -c 'echo written >/made/dir/f && cat /made/dir/f'
			# And what is written there stays in the pod's store.
			run ! grep -rlx written "$NODE_DIR/crio"
		else
			run ! crictl exec -s "$ctr" touch /made/dir/f
			assert_contains "$output" "Read-only"
		fi
		crictl rmp -f "$pod"
	done
	rm "$NODE_DIR/conf/crio.conf.d/87-volumes.conf"
	crio_restart
	eventually 20 crictl version
}

# ---- images as volumes ----

# volume_mount PATH REFERENCE [SUB-PATH]: a jq program for a container with an image as a volume.
volume_mount() {
	printf '.mounts += [{container_path: "%s", image: {image: "%s"}, image_sub_path: "%s", readonly: true}]' "$1" "$2" "${3:-}"
}

@test "an image as a volume: read-only, nothing in it runs, and its layers come through the pod's network alone" {
	local data mark options
	data=$(push_image data:1 --busybox "" --layer '/model/weights=many numbers' --layer '/readme=read me')
	mapfile -t layers < <(layer_digests "$data")
	pod=$(run_pod imagevol husk "${POD_JQ:-.}")
	mark=$(log_mark)
	pull_image "$data" imagevol
	local ref
	ref=$(push_image imagevol:1 --layer /a=1)
	image=$(pull_image "$ref" imagevol)
	ctr=$(run_ctr "$pod" imagevol c "$image=$ref" "$(volume_mount /data "$data") | $(volume_mount /weights/ "$data" model)" -- "${SLEEP[@]}")
	assert_eq "$(crictl exec -s "$ctr" cat /data/model/weights /data/readme /weights/weights)" "many numbersread memany numbers"
	run ! crictl exec -s "$ctr" sh -c 'echo x >/data/readme'
	assert_contains "$output" "Read-only"
	run ! crictl exec -s "$ctr" mount -o remount,rw,exec,suid,dev /data
	options=$(crictl exec -s "$ctr" sh -c "grep ' /data ' /proc/mounts")
	for option in ro nosuid nodev noexec; do
		grep -qE "[ ,]${option}[ ,]" <<<"$options" || fail "no $option: $options"
	done
	assert_eq "$(blob_requests "$mark" "$NODE_IP" "${layers[@]}")" 0 "the node's requests for layers"
	assert_eq "$(blob_requests "$mark" "$(pod_ip "$pod")" "${layers[@]}")" "${#layers[@]}"
	# Another container has it without asking again; one may be removed, and the other still has it.
	mark=$(log_mark)
	local other
	other=$(run_ctr "$pod" imagevol other "$image=$ref" "$(volume_mount /data "$data")" -- "${SLEEP[@]}")
	crictl stop -t 1 "$ctr"
	crictl rm "$ctr"
	assert_eq "$(crictl exec -s "$other" cat /data/readme)" "read me"
	assert_eq "$(blob_requests "$mark" "" "${layers[@]}")" 0 "requests for layers"
	assert_eq "$(in_shim "$pod" grep -c "containers/$ctr/" /proc/self/mountinfo)" 0 "mounts of a container that is gone"
	crictl rmp -f "$pod"
	test ! -e "/run/husk/pods/$pod"
}

@test "an image as a volume in a user namespace, on a disk" {
	local data ref
	data=$(push_image data:2 --busybox "" --layer '/dir/file=content')
	ref=$(push_image imagevol:2 --layer /a=1)
	shim_toml 'store = "disk"'
	pod=$(run_pod volns husk "$USERNS")
	pull_image "$data" volns
	image=$(pull_image "$ref" volns)
	ctr=$(run_ctr "$pod" volns c "$image=$ref" "$(volume_mount /data "$data" dir)" -- "${SLEEP[@]}")
	assert_eq "$(crictl exec -s "$ctr" sh -c 'cat /data/file; stat -c %u:%g /data/file')" content0:0
	run ! crictl exec -s "$ctr" sh -c 'echo x >/data/file'
	crictl rmp -f "$pod"
	test ! -e "$HUSK_TMP/stores/$pod"
}

@test "an image as a volume whose sub-path is missing, or leads out by a link, is refused" {
	local data ref sub secret=$HUSK_TMP/tmp/host-secret
	echo "the host's" >"$secret"
	mkdir -p "$HUSK_TMP/tmp/evil"
	ln -sfn "$HUSK_TMP/tmp" "$HUSK_TMP/tmp/evil/out"
	ln -sfn "../../../../../../../../../..$HUSK_TMP/tmp" "$HUSK_TMP/tmp/evil/up"
	ln -sfn /proc/self/root "$HUSK_TMP/tmp/evil/proc"
	tar -C "$HUSK_TMP/tmp/evil" -cf "$HUSK_TMP/tmp/evil.tar" .
	data=$(push_tar evil:1 "$HUSK_TMP/tmp/evil.tar")
	ref=$(push_image imagevol:3 --layer /a=1)
	pod=$(run_pod evil husk)
	pull_image "$data" evil
	image=$(pull_image "$ref" evil)
	for sub in missing out/host-secret out up/host-secret "proc$secret"; do
		run ! create_ctr "$pod" evil c "$image=$ref" "$(volume_mount /data "$data" "$sub")" -- cat /data
		assert_contains "$output" "$sub"
		refute_contains "$output" "the host's"
		assert_eq "$(in_shim "$pod" grep -c "/store/containers/" /proc/self/mountinfo)" 0 "mounts of a container that was refused"
	done
	# To the image's own root they lead, as they would in it.
	ctr=$(run_ctr "$pod" evil d "$image=$ref" "$(volume_mount /data "$data")" -- "${SLEEP[@]}")
	run ! crictl exec -s "$ctr" cat /data/out/host-secret
	crictl rmp -f "$pod"
	assert_eq "$(cat "$secret")" "the host's"
}
