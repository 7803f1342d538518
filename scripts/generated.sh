#!/bin/bash
# Fails when the committed generated code is not what proto/ gives. It works in a
# copy; nothing here is changed. Another version of protoc than the one that was
# used last differs in a comment, which is not looked at.
set -euo pipefail
cd "$(dirname "$0")/.."
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
mkdir "$copy/scripts"
cp -r proto go.mod go.sum "$copy"
cp scripts/generate.sh "$copy/scripts"
"$copy/scripts/generate.sh"
if ! diff -r -q -I '^// .*protoc ' -I '^// - protoc' -x '*.go.orig' proto "$copy/proto"; then
	echo "generated code is out of date: run make generate and commit the result"
	exit 1
fi
