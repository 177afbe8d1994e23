#!/usr/bin/env bats
# husk run and its companions: no CRI-O runs. Real runc, real CNI plugins, a real registry; and nothing is left behind,
# however husk ends.

# What tests of one file set for themselves; run sets stderr; what is in single quotes is for the container.
# shellcheck disable=SC2016,SC2030,SC2031,SC2154

load helpers

setup_file() {
	export BUSYBOX
	node_up --auth alice:Run-Secret-41c9
	husk_config >"$HUSK_TMP/husk.toml"
	crio_stop
	openssl genrsa -out "$HUSK_TMP/keys/key.pem" 2048 2>/dev/null
	openssl rsa -in "$HUSK_TMP/keys/key.pem" -pubout -out "$HUSK_TMP/tmp/pub.pem" 2>/dev/null
	BUSYBOX=$REGISTRY/busybox:latest
}

teardown_file() {
	nodes_down
}

setup() {
	leaks >"$HUSK_TMP/tmp/before"
}

teardown() {
	show_logs_on_failure
	local names
	mapfile -t names < <(husk ps -a --format '{{.ID}}')
	((${#names[@]} == 0)) || husk rm -f --container "${names[@]}" >/dev/null
	assert_clean
}

husk() { "$HUSK_BIN_DIR/husk" --config "$HUSK_TMP/husk.toml" "$@"; }

# run_in OPTION...: husk run with the node's cgroup.
run_in() { husk run --cgroup-parent "$CGROUP_PARENT" "$@"; }

# begin OPTION...: run_in in the background. $! is husk itself. What it prints is not what another has printed.
begin() {
	: >"$HUSK_TMP/tmp/out"
	"$HUSK_BIN_DIR/husk" --config "$HUSK_TMP/husk.toml" run --cgroup-parent "$CGROUP_PARENT" "$@" \
		>"$HUSK_TMP/tmp/out" 2>"$HUSK_TMP/tmp/err" </dev/null 3>&- &
}

# field NAME TEMPLATE: of a container.
field() { husk ps -a --format json | jq -er --arg n "$1" ".[] | select(.name == \$n) | $2"; }
is() { [[ $(field "$1" .status) == "$2" ]]; }

# leaks: everything of a container that could be left on the machine.
leaks() {
	local net p
	net=$(basename "$CGROUP_PARENT")
	awk -v d="$HUSK_TMP/" 'index($5, d) == 1 {print "mount", $5}' /proc/self/mountinfo
	for p in "$CRIO_RUNROOT"/husk-run/*/* /run/husk/pods/* "$NODE_DIR/crio/ipam/$net"/[0-9]* "/var/lib/husk/cni/results/$net"-*; do
		case $p in
		/run/husk/pods/*) ! grep -rqsF "$HUSK_TMP/" "$p/containers" || echo "$p" ;;
		*) [[ ! -e $p ]] || echo "$p" ;;
		esac
	done
	find /sys/fs/cgroup -path "*$CGROUP_PARENT/*" -type d || true # some go while it looks
	ip -o link show master "$(jq -r .network.bridge "$NODE_DIR/node.json")" | cut -d: -f2
	for p in $(pgrep -f '^/husk-pause|^husk-keeper|husk[.]toml run' || true); do
		case $(tr '\0' ' ' 2>/dev/null <"/proc/$p/cmdline" || true) in
		"/husk-pause "* | husk-keeper*) [[ $(readlink "/proc/$p/exe") != "$HUSK_BIN_DIR"/* ]] || echo "process $p" ;;
		*"$HUSK_TMP/husk.toml run"*) echo "process $p" ;;
		esac
	done
}

assert_clean() {
	diff "$HUSK_TMP/tmp/before" <(leaks) || fail "left behind"
}

@test "output, error output and exit codes" {
	run -0 --separate-stderr run_in --rm "$BUSYBOX" sh -c 'echo out; echo err >&2'
	assert_eq "$output" out
	assert_eq "$stderr" err
	assert_clean
	run -3 run_in --rm "$BUSYBOX" sh -c 'exit 3'
	# A signal: 128 and its number. The first process of a namespace dies of none that it sends itself.
	run -143 run_in --rm "$BUSYBOX" sh -c 'sh -c "kill -TERM \$\$"; exit $?'
	assert_eq "$(husk ps -a --format '{{.Name}}')" ""
}

@test "env, user, working directory, volumes, read-only root" {
	mkdir -p "$HUSK_TMP/tmp/vol"
	echo content >"$HUSK_TMP/tmp/vol/file"
	export FROM_HOST=host
	run -0 run_in --rm -e A=1,2 -e FROM_HOST -e NOT_SET_HERE -u 1000:2000 -w /tmp -v "$HUSK_TMP/tmp/vol:/vol:ro" --read-only "$BUSYBOX" \
		sh -c 'echo "$A $FROM_HOST ${NOT_SET_HERE-unset} $(id -u):$(id -g) $(pwd) $(cat /vol/file)"; touch /vol/x || touch /x || echo refused'
	assert_contains "$output" "1,2 host unset 1000:2000 /tmp content"
	assert_contains "$output" refused
	[[ ! -e $HUSK_TMP/tmp/vol/x ]]
}

@test "a terminal, and standard input" {
	run -0 bash -c "echo typed | '$HUSK_BIN_DIR/husk' --config '$HUSK_TMP/husk.toml' run --rm -i --cgroup-parent '$CGROUP_PARENT' '$BUSYBOX' cat"
	assert_eq "$output" typed
	# script(1) is the user's terminal; its size arrives, and it is as before when husk has ended.
	run -0 script -qec "stty rows 33 cols 77; stty -g >'$HUSK_TMP/tmp/stty1'; '$HUSK_BIN_DIR/husk' --config '$HUSK_TMP/husk.toml' run --rm -ti \
		--cgroup-parent '$CGROUP_PARENT' '$BUSYBOX' sh -c 'tty; while ! stty size | grep -q 77; do sleep 0.1; done; stty size'; stty -g >'$HUSK_TMP/tmp/stty2'" /dev/null
	assert_contains "$output" /dev/pts/0
	assert_contains "$output" "33 77"
	cmp "$HUSK_TMP/tmp/stty1" "$HUSK_TMP/tmp/stty2"
}

@test "networks: the default, by name, host, none" {
	local net
	net=$(jq -r .name "$NODE_DIR"/conf/cni/*.conflist)
	run -0 run_in --rm --net "$net" "$BUSYBOX" sh -c 'ip -o -4 addr show eth0; wget -qO- http://'"$REGISTRY"'/v2/; hostname'
	assert_contains "$output" "${NODE_IP%.*}."
	assert_contains "$output" "{}"
	run -0 run_in --rm --net host "$BUSYBOX" ip -o -4 addr
	assert_contains "$output" "$NODE_IP/"
	run -0 run_in --rm --net none "$BUSYBOX" ip -o -4 addr
	refute_contains "$output" eth0
	assert_contains "$output" 127.0.0.1
}

@test "the layers of a plain and of an encrypted image come from the pod's address, none to the host" {
	local ref enc mark ip digests
	ref=$(push_image plain:1 --layer /secret=42)
	skopeo copy --quiet --insecure-policy --src-tls-verify=false --dest-tls-verify=false \
		--encryption-key "jwe:$HUSK_TMP/tmp/pub.pem" "docker://$ref" "docker://$REGISTRY/enc:1"
	enc=$REGISTRY/enc:1
	for ref in "$ref" "$enc"; do
		mark=$(log_mark)
		run -0 run_in --name "${ref//[^a-z]/}" "$ref" sh -c 'cat /secret; ip -o -4 addr show eth0'
		assert_contains "$output" 42
		ip=$(sed -n 's/.*inet \([0-9.]*\)\/.*/\1/p' <<<"$output")
		mapfile -t digests < <(layer_digests "$ref")
		(($(blob_requests "$mark" "$ip" "${digests[@]}") >= ${#digests[@]}))
		assert_eq "$(blob_requests "$mark" "$NODE_IP" "${digests[@]}")" 0
	done
}

@test "an encrypted image without its key says so, and leaves nothing" {
	mv "$HUSK_TMP/keys/key.pem" "$HUSK_TMP/tmp/away.pem"
	run run_in --rm "$REGISTRY/enc:1" true
	mv "$HUSK_TMP/tmp/away.pem" "$HUSK_TMP/keys/key.pem"
	assert_eq "$status" 1
	assert_contains "$output" "husk: "
	assert_contains "$output" key
	assert_clean
}

@test "credentials: refused without, from standard input, in no log and no record" {
	skopeo copy --quiet --insecure-policy --src-tls-verify=false --dest-tls-verify=false --dest-creds alice:Run-Secret-41c9 "docker://$BUSYBOX" "docker://$AUTH_REGISTRY/private:1"
	run -4 run_in --rm "$AUTH_REGISTRY/private:1" true
	assert_clean
	run -0 run_in --name private --username alice --password-stdin "$AUTH_REGISTRY/private:1" echo in <<<Run-Secret-41c9
	assert_eq "$output" in
	run ! grep -rqF Run-Secret-41c9 "$CRIO_ROOT/overlay-containers" "$CRIO_RUNROOT/overlay-containers"
	refute_in_logs "$(printf alice:Run-Secret-41c9 | base64)"
}

@test "--pod: two containers, one network, each layer pulled once" {
	local ref mark digests id
	ref=$(push_image shared:1 --layer /s=1)
	mapfile -t digests < <(layer_digests "$ref")
	mark=$(log_mark)
	id=$(run_in -d --pod p --name a "$ref" sh -c 'echo hello >/tmp/index.html; httpd -f -p 8080 -h /tmp')
	assert_eq "${#id}" 64
	run -0 run_in --rm --pod p --name b "$ref" sh -c 'until wget -qO- http://127.0.0.1:8080/; do sleep 0.1; done'
	assert_contains "$output" hello
	assert_eq "$(blob_requests "$mark" "" "${digests[@]}")" "${#digests[@]}"
	assert_eq "$(husk pods --format '{{.Name}} {{.Status}} {{join .Containers ","}}')" "p up a"
	run -1 run_in --pod p --net host "$BUSYBOX" true
	assert_contains "$output" "its network is"
	husk stop -t 1 p
	assert_eq "$(husk pods --format '{{.Status}}')" down
	# A pod that is down is started again by who joins it.
	run -0 run_in --rm --pod p "$BUSYBOX" ip -o -4 addr show eth0
	husk rm --pod p
	assert_eq "$(husk ps -a --format '{{.Name}}')$(husk pods --format '{{.Name}}')" ""
	assert_clean
}

@test "exec: output, exit code, user, terminal; logs; stop; rm" {
	run_in -d --name web -u 1000 "$BUSYBOX" sh -c 'trap "exit 7" TERM; echo one; echo two >&2; echo three; while :; do sleep 0.1; done' >/dev/null
	eventually 10 bash -c "'$HUSK_BIN_DIR/husk' --config '$HUSK_TMP/husk.toml' logs web 2>/dev/null | grep -q three"
	run -5 husk exec web sh -c 'id -u; exit 5'
	assert_eq "$output" 1000
	local i
	for i in {1..10}; do assert_eq "$(echo "typed $i" | timeout 20 "$HUSK_BIN_DIR/husk" --config "$HUSK_TMP/husk.toml" exec -i web cat)" "typed $i"; done
	assert_eq "$(timeout 20 "$HUSK_BIN_DIR/husk" --config "$HUSK_TMP/husk.toml" exec -i web cat </dev/null)" ""
	assert_contains "$(husk exec -t web tty)" /dev/pts/
	run -3 husk exec nobody true
	run -0 --separate-stderr husk logs web
	assert_eq "$output" $'one\nthree'
	assert_eq "$stderr" two
	assert_contains "$(husk logs --tail 2 web 2>/dev/null)" three # the two outputs have no order
	assert_eq "$(husk logs --tail 2 web 2>&1 | wc -l)" 2
	[[ $(husk logs --timestamps web 2>/dev/null | tail -n1) =~ ^20[0-9-]+T.*Z\ three$ ]]
	run -4 husk rm web
	assert_contains "$output" "it runs"
	husk logs -f web >"$HUSK_TMP/tmp/followed" 2>/dev/null 3>&- &
	local follower=$!
	husk stop web
	wait "$follower"
	assert_eq "$(cat "$HUSK_TMP/tmp/followed")" $'one\nthree'
	assert_eq "$(field web '"\(.status) \(.exit_code)"')" "exited 7"
	assert_clean
	run -1 husk exec web true
	husk rm web
	run -3 husk logs web
	run_in -d --name web "$BUSYBOX" sleep 1000 >/dev/null # it has no handler
	husk rm -f web
	assert_eq "$(husk ps -a --format '{{.Name}}')" ""
}

@test "rm of an image that a container was made from is refused, and what is ambiguous too" {
	local ref
	ref=$(push_image inuse:1 --layer /i=1)
	run_in --name keeps "$ref" true
	run -4 husk rm "$ref"
	assert_contains "$output" "a container was made from it"
	run_in --pod keeps --name other "$BUSYBOX" true
	run -1 husk rm keeps
	assert_contains "$output" "--container, --pod or --image"
	husk rm --pod keeps
	run -0 husk rm "$ref"
}

@test "signals: one is passed on, a second Ctrl-C kills" {
	begin --rm --name sig "$BUSYBOX" sh -c 'trap "echo usr1" USR1; trap "echo hup" HUP; trap "echo term; exit 9" TERM; echo ready; while :; do sleep 0.1; done'
	local pid=$! code=0
	eventually 30 grep -q ready "$HUSK_TMP/tmp/out"
	kill -USR1 "$pid"
	eventually 30 grep -q usr1 "$HUSK_TMP/tmp/out"
	kill -HUP "$pid"
	eventually 30 grep -q hup "$HUSK_TMP/tmp/out"
	kill -TERM "$pid"
	wait "$pid" || code=$?
	assert_eq "$code" 9
	assert_clean
	begin --rm --name deaf "$BUSYBOX" sh -c 'trap "echo int" INT; trap "" TERM; echo ready; while :; do sleep 0.1; done'
	pid=$! code=0
	eventually 30 grep -q ready "$HUSK_TMP/tmp/out"
	kill -INT "$pid"
	# Not at once: the kernel makes one of two signals that are the same.
	eventually 30 grep -q int "$HUSK_TMP/tmp/out"
	kill -INT "$pid"
	wait "$pid" || code=$?
	assert_eq "$code" 137
	assert_eq "$(husk ps -a --format '{{.Name}}')" ""
}

@test "a reader that goes away ends the container" {
	run timeout 20 bash -c "'$HUSK_BIN_DIR/husk' --config '$HUSK_TMP/husk.toml' run --rm --cgroup-parent '$CGROUP_PARENT' '$BUSYBOX' yes | head -n1"
	assert_eq "$status $output" "0 y"
	eventually 10 assert_clean
}

@test "wrong image, network, runtime, name, volume: clear, and nothing is left" {
	run -3 run_in --rm "$REGISTRY/none:1" true
	assert_contains "$output" "$REGISTRY/none:1"
	run -3 run_in --rm --net nowhere "$BUSYBOX" true
	assert_contains "$output" "there is none of this name"
	run -3 run_in --rm --runtime nowhere "$BUSYBOX" true
	run -3 run_in --rm --runtime /bin/nowhere "$BUSYBOX" true
	run -1 run_in --rm --runtime runc "$BUSYBOX" true
	run -3 run_in --rm -v /no/such:/x "$BUSYBOX" true
	run -1 run_in --rm -v "$HUSK_TMP:x" "$BUSYBOX" true
	run -1 run_in --rm --name a/b "$BUSYBOX" true
	run -1 run_in --rm --name x.pod "$BUSYBOX" true
	run -1 run_in --rm -u nobody-here "$BUSYBOX" true
	run -1 run_in --rm "$BUSYBOX" /no/such/command
	assert_contains "$output" /no/such/command
	run -1 run_in --rm --runtime /bin/true "$BUSYBOX" true
	run -5 run_in --rm 127.0.0.1:1/x:1 true
	run -3 run_in -d --rm "$REGISTRY/none:1" true
	assert_contains "$output" "husk: "
	run_in --name taken "$BUSYBOX" true
	run -4 run_in --name taken "$BUSYBOX" true
	assert_contains "$output" "the name is taken"
	assert_eq "$(husk ps -a --format '{{.Name}}')" taken
	assert_clean
}

# killed_when COMMAND...: a husk run that is killed as soon as the command succeeds, or has ended.
killed_when() {
	begin --name victim --pod v "$BUSYBOX" sleep 1000
	local pid=$! end=$((SECONDS + 20))
	until "$@" 2>/dev/null; do
		kill -0 "$pid" 2>/dev/null || break
		((SECONDS < end)) || fail "it never happens: $*"
	done
	kill -9 "$pid"
	wait "$pid" || true
	# What it was doing is not running, whatever it was, and not there once it is removed.
	run -0 --separate-stderr husk ps -a --format '{{.Name}} {{.Status}}'
	[[ -z $output || $output == "victim exited" ]] || fail "it is: $output"
	assert_eq "$stderr" ""
	assert_clean
	[[ -z $output ]] || husk rm victim
	assert_eq "$(husk ps -a --format '{{.Name}}')$(husk pods --format '{{.Name}}')" ""
}

any() { compgen -G "$1" >/dev/null; }

@test "kill -9 at each step: the next husk cleans up" {
	local s=$CRIO_RUNROOT/husk-run
	killed_when any "$s/locks/*"
	killed_when any "$s/locks/pod-*"
	killed_when any "$s/pods/*"
	killed_when any "$s/pods/*/netns"
	killed_when any "$NODE_DIR/crio/ipam/*/1*"
	killed_when any "$s/pods/*/resolv.conf"
	killed_when any "$CRIO_RUNROOT/overlay-containers/*/userdata/config.json"
	killed_when any "$CRIO_RUNROOT/overlay-containers/*/userdata/address"
	killed_when any "$s/pods/*/io/*"
	killed_when any "$s/pods/*/io/*/*/stdout"
	killed_when any "$CRIO_ROOT/overlay-containers/*/userdata/ctr.log"
	killed_when any "$HUSK_TMP/state/runc/default/*/state.json"
}

@test "kill -9 at any time" {
	local i
	for i in {10..33}; do killed_when sleep "0.$i"; done
}

@test "killed: husk, then its keeper and its shim too" {
	run_in -d --name alone "$BUSYBOX" sleep 1000 >/dev/null
	run_in -d --rm --name gone "$BUSYBOX" sleep 1000 >/dev/null
	run_in -d --name spared "$BUSYBOX" sleep 1000 >/dev/null
	local id
	id=$(field alone .pod_id)
	assert_eq "${#id}" 64 # or the patterns would match anybody's
	pkill_of "$HUSK_TMP/husk.toml run .*--name alone"
	pkill_of "$HUSK_TMP/husk.toml run .*--name gone"
	pkill_of "^husk-keeper .*$id"
	pkill_of "containerd-shim.*$id"
	assert_eq "$(husk ps -a --format '{{.Name}} {{.Status}} {{.ExitCode}} {{.Reason}}')" $'alone exited 137 its husk was killed\nspared running 0 '
	assert_eq "$(husk pods --format '{{.Name}} {{.Status}}')" $'alone down\nspared up'
	husk exec spared true
	husk rm -f alone spared
	assert_clean
}

# pkill_of PATTERN: kill -9 of this node's processes that match.
pkill_of() {
	local pid
	pid=$(pgrep -f -- "$1") || fail "no process $1"
	# shellcheck disable=SC2086
	kill -9 $pid
}

@test "a reboot: everything volatile is gone" {
	run_in -d --name up --pod kept "$BUSYBOX" sleep 1000 >/dev/null
	run_in -d --rm --name auto "$BUSYBOX" sleep 1000 >/dev/null
	local p id ids
	mapfile -t ids < <(husk pods --format '{{.ID}}')
	pkill_of "$HUSK_TMP/husk.toml run .*--name up" # first: they would write down that the shim has ended
	pkill_of "$HUSK_TMP/husk.toml run .*--name auto"
	for id in "${ids[@]}"; do
		assert_eq "${#id}" 64
		pkill_of "^husk-keeper .*$id"
		pkill_of "containerd-shim.*$id"
		rm -rf "/run/husk/pods/$id"
	done
	# shellcheck disable=SC2013
	for p in $(cat /sys/fs/cgroup/pids"$CGROUP_PARENT"/pod-*/*/cgroup.procs); do kill -9 "$p"; done
	for p in "$CRIO_RUNROOT"/husk-run/pods/*/netns; do umount "$p"; done
	rm -rf "$CRIO_RUNROOT/husk-run" "$CRIO_RUNROOT/overlay-containers" "$HUSK_TMP/state/runc"
	find /sys/fs/cgroup -depth -path "*$CGROUP_PARENT/pod-*" -type d -exec rmdir {} + # with the machine
	assert_eq "$(husk ps -a --format '{{.Name}} {{.Status}} {{.Reason}}')" "up exited its husk was killed"
	assert_eq "$(husk pods --format '{{.Name}} {{.Status}}')" "kept down"
	assert_clean
	run -0 run_in --rm --pod kept "$BUSYBOX" echo again
	assert_eq "$output" again
	husk rm up
	assert_eq "$(husk pods --format '{{.Name}}')" ""
}

@test "many at once, also into one pod, while others look and are killed" {
	local i pids=() victim
	for i in 1 2 3 4; do
		run_in --rm --pod crowd --name "c$i" "$BUSYBOX" sh -c "sleep 0.$i; echo done$i" >"$HUSK_TMP/tmp/c$i" 2>&1 3>&- &
		pids+=($!)
		run_in --rm --name "s$i" "$BUSYBOX" echo "done$i" >"$HUSK_TMP/tmp/s$i" 2>&1 3>&- &
		pids+=($!)
		begin --rm --pod crowd --name "v$i" "$BUSYBOX" sleep 1000
		victim=$!
		husk ps -a >/dev/null
		kill -9 "$victim"
		wait "$victim" || true
	done
	for i in "${pids[@]}"; do wait "$i" || fail "$(tail -n +1 "$HUSK_TMP"/tmp/[cs][1-4])"; done
	for i in 1 2 3 4; do
		assert_eq "$(cat "$HUSK_TMP/tmp/c$i") $(cat "$HUSK_TMP/tmp/s$i")" "done$i done$i"
	done
	assert_eq "$(husk ps -a --format '{{.Name}}')$(husk pods --format '{{.Name}}')" ""
	assert_clean
}

# none_kept: neither a container nor a pod; each look also tries the cleaning up again.
none_kept() {
	local kept
	kept=$(husk ps -a --format '{{.Name}}' && husk pods --format '{{.Name}}') && [[ -z $kept ]]
}

@test "Ctrl-C before it runs undoes everything" {
	local i code
	for i in 05 10 15 20 30; do
		code=0
		begin --rm "$BUSYBOX" sleep 1000
		local pid=$!
		sleep "0.$i"
		kill -INT "$pid"
		sleep 0.05
		kill -0 "$pid" 2>/dev/null && kill -INT "$pid" # it may have run already: sleep ignores the first
		wait "$pid" || code=$?
		((code == 130 || code == 137)) || fail "exit code $code: $(cat "$HUSK_TMP/tmp/err")"
		eventually 60 none_kept
		eventually 30 assert_clean
	done
}

@test "CRI-O, once it runs, sees none of it and removes none of it" {
	run_in -d --name mine "$BUSYBOX" sleep 1000 >/dev/null
	crio_start
	assert_eq "$(stock ps -a -q)$(stock pods -q)" ""
	crio_stop
	husk exec mine true
	husk rm -f mine
}
