#!/usr/bin/env bash
# Puts the sources of this commit into OUT as a tarball, and beside it what builds packages of it elsewhere. The
# same commit gives the same bytes: names, times and order are git's.
set -euo pipefail
cd "$(dirname "$0")/.."

(($# == 1)) || { echo "usage: $0 OUT" >&2; exit 64; }
out=$1
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
tarball=$out/v6pod-$version.tar.gz

say() { echo "==> dist: $*"; }

git diff --quiet HEAD || say "what is not committed is not in it"
mkdir -p "$out"
git archive --format=tar --prefix="v6pod-$version/" HEAD | gzip -9n >"$tarball"
sum=$(sha256sum "$tarball" | cut -d ' ' -f 1)
for file in v6pod.spec PKGBUILD; do
    sed -e "s/@VERSION@/$version/g; s/@SHA256@/$sum/g" "packaging/$file" >"$out/$file"
done
say "$tarball ($(du -h "$tarball" | cut -f 1)), v6pod.spec, PKGBUILD"
