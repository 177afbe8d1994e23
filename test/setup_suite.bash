#!/usr/bin/env bash
# Run once by bats before all files of this folder: builds what the tests run, unless the Makefile has done so.

setup_suite() {
	[[ $EUID -eq 0 ]] || {
		echo "the end-to-end tests need root" >&2
		return 1
	}
	local root
	root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
	export HUSK_BIN_DIR=${HUSK_BIN_DIR:-$root/build/bin}
	export HUSK_CACHE=${HUSK_CACHE:-${HOME:-/root}/.cache/husk}
	mkdir -p "$HUSK_BIN_DIR"
	local tool
	for tool in testnode crictl; do
		[[ -x $HUSK_BIN_DIR/$tool ]] || go -C "$root/test/node" build -o "$HUSK_BIN_DIR/$tool" "./cmd/$tool" || return 1
	done
	"$HUSK_BIN_DIR/testnode" build --cache "$HUSK_CACHE" >/dev/null
}
