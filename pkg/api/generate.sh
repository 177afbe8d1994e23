#!/usr/bin/env bash
# Generates the Go code of every .proto below this folder: messages of all, gRPC of husk/, ttrpc of shim/ (cdh/ names
# services of others, which are spoken by name). Needs protoc 3.21.12 (Debian 12: protobuf-compiler).
set -euo pipefail

# The versions of the other plugins are those of google.golang.org/protobuf and containerd/ttrpc in go.mod.
GRPC_PLUGIN=google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.5.1

cd "$(dirname "${BASH_SOURCE[0]}")"
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
export CGO_ENABLED=0 GOBIN=$bin
go build -o "$bin/protoc-gen-go" google.golang.org/protobuf/cmd/protoc-gen-go
go build -o "$bin/protoc-gen-go-ttrpc" github.com/containerd/ttrpc/cmd/protoc-gen-go-ttrpc
go install "$GRPC_PLUGIN"
find . -name '*.proto' -print0 | sort -z | PATH=$bin:$PATH xargs -0 -n1 protoc \
	--proto_path=. --go_out=. --go_opt=paths=source_relative
find husk -name '*.proto' -print0 | sort -z | PATH=$bin:$PATH xargs -0 -n1 protoc \
	--proto_path=. --go-grpc_out=. --go-grpc_opt=paths=source_relative
find shim -name '*.proto' -print0 | sort -z | PATH=$bin:$PATH xargs -0 -n1 protoc \
	--proto_path=. --go-ttrpc_out=. --go-ttrpc_opt=paths=source_relative
