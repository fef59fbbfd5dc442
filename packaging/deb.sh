#!/usr/bin/env bash
# Puts a Debian package of what is built into OUT. Needs dpkg-deb and readelf, and nothing else: what
# goes where is told by `make install`.
#
# From the environment: RELEASE and SHIM as in the Makefile, to package another build; VERSION, to
# call it otherwise; COMPRESSION, as dpkg-deb -Z takes it.
set -euo pipefail
cd "$(dirname "$0")/.."

(($# == 1)) || { echo "usage: $0 OUT" >&2; exit 64; }
out=$1
version=${VERSION:-$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)}
arch=$(dpkg --print-architecture)
here=packaging/debian

say() { echo "==> deb: $*"; }

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
chmod 0755 "$stage"
umask 022
make --no-print-directory -s install DESTDIR="$stage" PREFIX=/usr ZSH=/usr/share/zsh/vendor-completions \
    ${RELEASE:+RELEASE="$RELEASE"} ${SHIM:+SHIM="$SHIM"} >/dev/null

doc=$stage/usr/share/doc/v6pod
install -m 0644 "$here/copyright" "$doc/copyright"
# Policy wants its own form; the text is in CHANGELOG.md.
date=$(date -R -d "@${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}")
maintainer=$(sed -n 's/^Maintainer: //p' "$here/control")
printf 'v6pod (%s) unstable; urgency=medium\n\n  * See CHANGELOG.md.\n\n -- %s  %s\n' \
    "$version" "$maintainer" "$date" | gzip -9n >"$doc/changelog.gz"
gzip -9n "$stage"/usr/share/man/man?/*
install -D -m 0644 "$here/lintian-overrides" "$stage/usr/share/lintian/overrides/v6pod"

# The oldest C library that has all that the programs ask for.
programs=("$stage"/usr/sbin/v6podd "$stage"/usr/bin/v6podctl "$stage"/usr/libexec/v6pod/v6pod-shim
    "$stage"/usr/libexec/v6pod/v6pod-hook "$stage"/usr/libexec/v6pod/v6pod-wishes
    "$stage"/usr/lib/cni/v6pod "$stage"/usr/libexec/netavark/v6pod)
libc=$(readelf --version-info "${programs[@]}" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -n 1)
size=$(du -sk --apparent-size "$stage" | cut -f 1)

install -d "$stage/DEBIAN"
sed -e "s/@VERSION@/$version/; s/@ARCH@/$arch/; s/@SIZE@/$size/; s/@LIBC@/${libc#GLIBC_}/" \
    "$here/control" >"$stage/DEBIAN/control"
install -m 0755 "$here"/{preinst,postinst,prerm,postrm} "$stage/DEBIAN/"
(cd "$stage" && find etc -type f -printf '/%p\n' | sort) >"$stage/DEBIAN/conffiles"
(cd "$stage" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$stage/DEBIAN/md5sums"

mkdir -p "$out"
deb=$out/v6pod_${version}_$arch.deb
dpkg-deb --root-owner-group -Z"${COMPRESSION:-xz}" --build "$stage" "$deb" >/dev/null
say "$deb ($(du -h "$deb" | cut -f 1))"
