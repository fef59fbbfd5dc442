#!/bin/sh
# Puts a real Consul, for the tests alone, at DEST/consul.
#
# Debian has packaged Consul up to bullseye; that binary (1.8.7) runs unchanged on later releases when
# it is merely unpacked. So a private apt state (sources, lists, cache, status) under DEST fetches the
# one package. The machine's own apt state is read, never written, and nothing is installed. The
# mirror is the one that apt is set up with here; the signature is Debian's archive key's.
#
# Doing it again is cheap: a binary that answers `consul version` is left as it is.
set -eu

usage() {
    echo "usage: $0 [DEST]   (DEST: /var/cache/v6pod-tests unless given)" >&2
    exit 64
}

[ $# -le 1 ] || usage
case ${1-} in -*) usage ;; esac
dest=${1:-/var/cache/v6pod-tests}
suite=bullseye
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

say() { echo "consul.sh: $*"; }
fail() { echo "consul.sh: $*" >&2; exit 1; }
works() { [ -x "$dest/consul" ] && "$dest/consul" version >/dev/null 2>&1; }

if works; then
    say "$dest/consul is there: $("$dest/consul" version | head -n 1)"
    exit 0
fi

for tool in apt-get dpkg-deb; do
    command -v "$tool" >/dev/null || fail "$tool is missing: this works on Debian alone"
done
[ -r "$keyring" ] || fail "$keyring is missing: install debian-archive-keyring"

# The first mirror that serves Debian itself: not a vendor's, not the security archive.
mirror=$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(LABEL)' |
    awk '$2 == "Debian" && $3 == "Debian" && !seen[$1]++ { print $1; exit }')
[ -n "$mirror" ] || fail "apt knows no mirror of Debian (has 'apt-get update' been run?)"

mkdir -p "$dest"
dest=$(cd "$dest" && pwd)
state=$dest/consul.apt
say "a private apt state in $state, $suite from $mirror"
mkdir -p "$state/lists/partial" "$state/cache/archives/partial" "$state/etc" "$state/none"
: >"$state/status"
echo "deb [signed-by=$keyring] $mirror $suite main" >"$state/etc/sources.list"

# The suite is archived and its release file may have run out; its signature is checked all the same.
private_apt() {
    apt-get -qq \
        -o Dir::Etc::SourceList="$state/etc/sources.list" \
        -o Dir::Etc::SourceParts="$state/none" \
        -o Dir::Etc::Preferences="$state/none/preferences" \
        -o Dir::Etc::PreferencesParts="$state/none" \
        -o Dir::State="$state" \
        -o Dir::State::Lists="$state/lists" \
        -o Dir::State::status="$state/status" \
        -o Dir::Cache="$state/cache" \
        -o Acquire::Check-Valid-Until=false \
        -o Acquire::Languages=none \
        -o APT::Sandbox::User=root \
        -o APT::Update::Error-Mode=any \
        "$@"
}

say "reading the list of packages"
private_apt update || fail "the list of packages of $suite could not be read"
say "downloading consul (about 20 MB)"
(cd "$state/cache/archives" && private_apt download "consul/$suite") ||
    fail "the package could not be downloaded"

deb=$(find "$state/cache/archives" -maxdepth 1 -name 'consul_*.deb' | sort | tail -n 1)
[ -n "$deb" ] || fail "apt downloaded nothing"
say "unpacking $(basename "$deb")"
unpacked=$state/unpacked
rm -rf "$unpacked"
dpkg-deb -x "$deb" "$unpacked"
# A rename, so that whoever looks at the same time sees a whole binary or none.
mv "$unpacked/usr/bin/consul" "$dest/consul.new"
mv "$dest/consul.new" "$dest/consul"
rm -rf "$unpacked" "$state/lists"

works || fail "$dest/consul does not run here"
say "$dest/consul: $("$dest/consul" version | head -n 1)"
