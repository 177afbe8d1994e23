#!/usr/bin/env bats
# Last of all files: what the logs of all nodes before have kept.

load helpers

setup() {
	[[ -s $BATS_SUITE_TMPDIR/credentials && -d $BATS_SUITE_TMPDIR/logs ]] ||
		fail "no test with credentials ran before: this file is the last of the whole suite, not one to run alone"
}

@test "no log of the whole suite holds a credential" {
	local logs found
	logs=$(find "$BATS_SUITE_TMPDIR/logs" -type f -name 'husk*.log' -size +0 | wc -l)
	((logs > 0)) || fail "no node has kept a log of husk"
	# The look itself works: what the logs do hold is found.
	grep -rqF "pulled image metadata" "$BATS_SUITE_TMPDIR/logs" || fail "the logs do not even hold what they must"
	found=$(sort -u "$BATS_SUITE_TMPDIR/credentials" | grep -rlF -f - "$BATS_SUITE_TMPDIR/logs" || true)
	assert_eq "$found" "" "logs with a credential"
}
