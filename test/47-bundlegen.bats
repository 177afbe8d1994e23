#!/usr/bin/env bats
# bundlegen against stock CRI-O: for the same image and the same request, every field of the runtime spec is the same,
# or the difference is in a table with its reason. test/bundlediff makes the containers on one node; here each topic is
# a test.

load helpers

setup_file() {
	local tool=$HUSK_BIN_DIR/bundlediff
	if [[ ! -x $tool ]]; then
		tool=$BATS_FILE_TMPDIR/bundlediff
		CGO_ENABLED=0 go -C "$HUSK_ROOT" build -tags "containers_image_openpgp exclude_graphdriver_btrfs" -o "$tool" ./test/bundlediff
	fi
	export VERDICT=$BATS_FILE_TMPDIR/verdict.json REPORT=$BATS_FILE_TMPDIR/report
	rm -rf "$HUSK_LOG_DIR/47-bundlegen"
	# It fails when anything is not as it should be; the tests say what.
	"$tool" --bin "$HUSK_BIN_DIR" --cache "$HUSK_CACHE" --out "$VERDICT" --logs "$HUSK_LOG_DIR/47-bundlegen" >"$REPORT" 2>&1 || true
	[[ -s $VERDICT ]] || fail "$(tail -20 "$REPORT")"
}

# agree TOPIC COMBINATIONS: nothing is wrong with a topic, and there are at least so many combinations of it.
agree() {
	local problems
	problems=$(jq -r --arg t "$1" '.Problems[]? | select(contains($t + "/"))' "$VERDICT")
	[[ -z $problems ]] || fail "$problems"
	(($(jq --arg t "$1" '.Topics[$t]' "$VERDICT") >= $2)) || fail "combinations of $1 are missing"
}

@test "process: entrypoint, cmd, command and args in every combination" { agree process 20; }
@test "env: order, precedence, duplicates, what is no variable, the node's own" { agree env 20; }
@test "cwd: whose it is, and the directory that is made" { agree cwd 12; }
@test "stop signal: the image's and the request's" { agree stop 5; }
@test "volumes: the directories and whose they are" { agree volumes 12; }
@test "image: ports, labels, health check, annotations, docker's format" { agree image 6; }
@test "request: read-only root, terminal, mounts, capabilities, seccomp" { agree request 10; }
@test "user of the image in every form" { agree user 40; }
@test "user and group of the request" { agree run-as 20; }
@test "groups: merge, strict, supplemental" { agree groups 15; }
@test "files: no passwd, empty ones, links, broken lines" { agree files 25; }
@test "where bundlegen is meant to differ is written down, and nothing else is" {
	assert_eq "$(jq -r '.Problems // [] | .[]' "$VERDICT")" ""
	assert_eq "$(jq '.Listed | length' "$VERDICT")" 24
	jq -e '.Unlisted == 0 and all(.Listed[]; .Why != "" and .Occurrences >= .Fields)' "$VERDICT"
}
@test "no part of a spec escapes the comparison" {
	jq -e '.Combinations >= 190 and .Made >= 150 and .Compared > 100 * .Made and .Tried > 2500 and .Tried == .Seen' "$VERDICT"
}
