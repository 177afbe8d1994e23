#!/usr/bin/env bash
# What the tests of an operator's view share, on top of helpers.bash. A test has set
#   CURRENT         the daemon of the node that is the husk which serves
#   METRICS_URL     where it serves metrics, and METRICS_SOCKET the socket to do that on, if it is one

# collector_build: the collector and client of test/collector, which the Makefile may have built.
collector_build() {
	export COLLECTOR=$HUSK_BIN_DIR/collector
	[[ ! -x $COLLECTOR ]] || return 0
	COLLECTOR=$BATS_FILE_TMPDIR/collector
	CGO_ENABLED=0 go -C "$HUSK_ROOT" build -tags "containers_image_openpgp exclude_graphdriver_btrfs" -o "$COLLECTOR" ./test/collector
}

husk() { "$HUSK_BIN_DIR/husk" --config "$HUSK_TMP/husk.toml" "$@"; }

# ask METHOD REQUEST [FLAG...]: one call of any method, without the questions that crictl asks first.
ask() { "$COLLECTOR" call --socket "$FRONT_SOCK" "${@:3}" "$1" <<<"$2"; }

# metrics PATH [FLAG OF curl...]: an answer of the metrics server.
metrics() { curl -sf ${METRICS_SOCKET:+--unix-socket "$METRICS_SOCKET"} "$METRICS_URL$1" "${@:2}"; }

# metric 'NAME{LABELS}' prints its value; nothing when there is no such series.
metric() {
	local all
	all=$(metrics /metrics) || return 1
	awk -v name="$1" '$1 == name {printf "%.0f\n", $2}' <<<"$all"
}

metric_is() { [[ $(metric "$1") == "$2" ]]; }

# husk_reload OUTCOME: SIGHUP, and waits until husk has counted it as ok or as error.
husk_reload() {
	local series="husk_config_reloads_total{outcome=\"$1\"}" before
	before=$(metric "$series")
	kill -HUP "$(daemon_pid "$CURRENT")"
	eventually 10 metric_is "$series" $((before + 1))
}

# husk_replace NAME [FILE]: another husk, with that configuration, takes over from the one that serves.
husk_replace() {
	local old
	old=$(daemon_pid "$CURRENT")
	testnode start --dir "$NODE_DIR" "$1" "$HUSK_BIN_DIR/husk" --config "${2:-$HUSK_TMP/husk.toml}" serve
	CURRENT=$1
	eventually 20 grep -q "serving CRI.*socket=hand-over" "$NODE_DIR/log/$1.log"
	eventually 20 gone "$old"
}

gone() { ! [[ -e /proc/$1 ]] || grep -q '^State:.Z' "/proc/$1/status"; }
