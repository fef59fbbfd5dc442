#!/usr/bin/env bash
# Puts the C library of Debian 11, as programs are linked with it, into DEST, and beside it DEST/cc, a
# compiler that links with that one in place of this machine's. What is linked with an old C library
# runs with every newer one, never the other way round. Nothing is installed and nobody has to be
# root; the mirror is the one that apt is set up with here. Needs mmdebstrap and a C compiler.
#
# Doing it again is cheap: what is there is left as it is.
set -euo pipefail

(($# == 1)) || { echo "usage: $0 DEST" >&2; exit 64; }
dest=$1
# The suite, its unwinder's package, and that one's number.
suite=bullseye
gcc=10

say() { echo "==> sysroot: $*"; }
fail() { echo "==> sysroot: $*" >&2; exit 1; }

[[ ! -x $dest/cc ]] || exit 0
command -v mmdebstrap >/dev/null || fail "mmdebstrap is missing: apt-get install mmdebstrap"
triple=$(cc -print-multiarch)

# The first mirror that serves Debian itself: not a vendor's, not the security archive.
mirror=$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(LABEL)' |
    awk '$2 == "Debian" && $3 == "Debian" && !seen[$1]++ { print $1; exit }')
[[ -n $mirror ]] || fail "apt knows no mirror of Debian (has 'apt-get update' been run?)"

say "the C library of $suite from $mirror"
mkdir -p "$(dirname "$dest")"
dest=$(cd "$(dirname "$dest")" && pwd)/$(basename "$dest")
rm -rf "$dest" "$dest.new"
trap 'rm -rf "$dest.new"' EXIT
# Unpacked, no more: no script of a package is run. An old suite's release file may have run out; its
# signature is checked all the same.
mmdebstrap --quiet --mode=chrootless --variant=extract --include="libc6-dev,libgcc-$gcc-dev" \
    --aptopt='Acquire::Check-Valid-Until "false"' "$suite" "$dest.new" "$mirror"
# Links by absolute paths are into the sysroot too. The linker that comes with Rust does not see that.
find "$dest.new" -lname '/*' -print0 | while IFS= read -r -d '' link; do
    ln -sfnr "$dest.new$(readlink "$link")" "$link"
done
# -B, because this machine's libraries would come before a sysroot's.
cat >"$dest.new/cc" <<END
#!/bin/sh
exec cc --sysroot=$dest -B$dest/usr/lib/gcc/$triple/$gcc \\
    -B$dest/usr/lib/$triple -B$dest/lib/$triple "\$@"
END
chmod 0755 "$dest.new/cc"
mv "$dest.new" "$dest"
