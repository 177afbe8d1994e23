#!/usr/bin/env bash
# Generates the Go code of every .proto below this folder: messages of all, gRPC of husk/ (the others are spoken over
# ttrpc). Needs protoc 3.21.12 (Debian 12: protobuf-compiler).
set -euo pipefail

# The version of the other plugin, protoc-gen-go, is that of google.golang.org/protobuf in go.mod.
GRPC_PLUGIN=google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.5.1

cd "$(dirname "${BASH_SOURCE[0]}")"
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
export CGO_ENABLED=0 GOBIN=$bin
go build -o "$bin/protoc-gen-go" google.golang.org/protobuf/cmd/protoc-gen-go
go install "$GRPC_PLUGIN"
find . -name '*.proto' -print0 | sort -z | PATH=$bin:$PATH xargs -0 -n1 protoc \
	--proto_path=. --go_out=. --go_opt=paths=source_relative
find husk -name '*.proto' -print0 | sort -z | PATH=$bin:$PATH xargs -0 -n1 protoc \
	--proto_path=. --go-grpc_out=. --go-grpc_opt=paths=source_relative
