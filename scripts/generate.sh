#!/bin/sh
# Regenerates the Go code, the REST gateway and the OpenAPI description from
# proto/. Needs protoc (Debian: protobuf-compiler); the plug-ins are installed at
# the versions that go.mod names. What it writes is committed.
set -eu
cd "$(dirname "$0")/.."

bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
export PATH="$bin:$PATH"
GOBIN=$bin go install google.golang.org/protobuf/cmd/protoc-gen-go
GOBIN=$bin go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2
GOBIN=$bin go install \
	github.com/grpc-ecosystem/grpc-gateway/v2/protoc-gen-grpc-gateway \
	github.com/grpc-ecosystem/grpc-gateway/v2/protoc-gen-openapiv2

cd proto
protoc -I . -I third_party \
	--go_out=. --go_opt=paths=source_relative \
	--go-grpc_out=. --go-grpc_opt=paths=source_relative \
	--grpc-gateway_out=. --grpc-gateway_opt=paths=source_relative \
	--openapiv2_out=. --openapiv2_opt=openapi_configuration=holdfast/v1/openapi.yaml \
	holdfast/v1/node.proto holdfast/v1/api.proto
rm -f holdfast/v1/node.swagger.json
