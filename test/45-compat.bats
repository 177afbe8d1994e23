#!/usr/bin/env bats
# Every configuration through stock CRI-O and through husk: the same outcome, image, identity and requests, but for
# the layers. test/compat does the pulls on one node; here each topic of its table is a test.

load helpers

setup_file() {
	local compat=$HUSK_BIN_DIR/compat
	if [[ ! -x $compat ]]; then
		compat=$BATS_FILE_TMPDIR/compat
		CGO_ENABLED=0 go -C "$HUSK_ROOT" build -tags "containers_image_openpgp exclude_graphdriver_btrfs" -o "$compat" ./test/compat
	fi
	export RESULTS=$BATS_FILE_TMPDIR/results.json
	rm -rf "$HUSK_LOG_DIR/45-compat"
	# It fails when a case does; the tests say which.
	"$compat" --bin "$HUSK_BIN_DIR" --cache "$HUSK_CACHE" --out "$RESULTS" --logs "$HUSK_LOG_DIR/45-compat" \
		>"$BATS_FILE_TMPDIR/report" 2>&1 || true
	[[ -s $RESULTS ]] || fail "$(tail -20 "$BATS_FILE_TMPDIR/report")"
}

# agree TOPIC CASES: all cases of a topic agree, and there are at least so many of them.
agree() {
	local problems
	problems=$(jq -r --arg t "$1" '.[] | select(.Topic == $t and .Problems != null) | "\(.Name): \(.Problems | join("; "))\n  stock: \(.Stock.Message)\n  husk:  \(.Husk.Message)"' "$RESULTS")
	[[ -z $problems ]] || fail "$problems"
	(($(jq --arg t "$1" '[.[] | select(.Topic == $t)] | length' "$RESULTS") >= $2)) || fail "cases of $1 are missing"
}

@test "mirrors: order, fallback, pull-from-mirror" { agree mirrors 17; }
@test "names: rewriting, wildcards, blocked, short names" { agree names 18; }
@test "transport: HTTP, TLS, certs.d, client certificates, insecure" { agree transport 13; }
@test "credentials of the request" { agree credentials 30; }
@test "credentials of the node: global_auth_file, paths, helper" { agree auth-file 10; }
@test "policy at pull: reject, accept, simple signing, sigstore, fulcio and rekor; node and namespace" { agree policy 38; }
@test "formats, and what is missing" { agree images 13; }
@test "registries that lie, send elsewhere or fail for a while" { agree faults 10; }
@test "policy when the container is made, by CRI-O itself on husk's record" { agree create 18; }
@test "no log of the node holds a credential" { agree logs 1; }
@test "husk asks for less than stock CRI-O, whatever the configuration" {
	jq -e 'map(select(.Stock.Class == "ok" and .Husk.Class == "ok" and .Differs == null and .Topic != "logs")) | length > 80
		and all(.[]; (.Husk.Requests | length) < (.Stock.Requests | length))' "$RESULTS"
}
@test "where husk is meant to differ is written down" {
	assert_eq "$(jq '[.[] | select(.Differs != null)] | length' "$RESULTS")" 15
}
