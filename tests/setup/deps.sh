#!/usr/bin/env bash
# Installs what building, testing and the demo need and this machine has not. Nothing is done, and
# nothing downloaded, where all of it is there. Not as root, it says what is missing and how to get
# it, and fails. With the word `demo` it leaves out the hosts that only tests boot.
set -euo pipefail

# The one list.
packages=(
    # To build.
    gcc libc6-dev
    # Rootless podman with all its networks.
    podman conmon runc crun slirp4netns passt uidmap fuse-overlayfs catatonit
    netavark aardvark-dns containernetworking-plugins iptables nftables podman-compose
    # The tests' and the demo's own.
    busybox-static curl dnsutils musl-tools iproute2 iputils-ping jq procps python3 tcpdump
    util-linux
    # The provider of a test, and the host that it delegates a prefix to.
    isc-dhcp-client isc-dhcp-server radvd
    # Whole hosts, booted, and the package that is installed on them.
    binutils dpkg make mmdebstrap systemd-container
    # To fetch Consul.
    ca-certificates debian-archive-keyring
)
# What only tests look at the status page with, and a font for it; and what another client needs, which
# makes up requests by the API's contract and is Python's.
what=${1:-all}
[[ $what == demo ]] || packages+=(chromium-headless-shell fonts-dejavu-core python3-venv)
schemathesis=4.32.5
cache=/var/cache/v6pod-tests
here=$(cd "$(dirname "$0")" && pwd)

say() { echo "==> deps: $*"; }
fail() { echo "==> deps: $*" >&2; exit 1; }

command -v cargo >/dev/null ||
    fail "Rust is missing: https://rustup.rs, or apt-get install rustup && rustup default stable"
command -v dpkg-query >/dev/null ||
    fail "this is no Debian: install what Debian calls: ${packages[*]}"

missing=()
for package in "${packages[@]}"; do
    status=$(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null || true)
    [[ $status == ii* ]] || missing+=("$package")
done
# systemd-resolved, for the host of a test: of the Debian that this is, if that is one that tests boot.
if ((EUID == 0)) && [[ $(. /etc/os-release && echo "${VERSION_CODENAME:-}") == bookworm ]] &&
    ! compgen -G "$cache/systemd-resolved_*.deb" >/dev/null; then
    mkdir -p "$cache" && (cd "$cache" && apt-get download --quiet systemd-resolved) ||
        say "there is no systemd-resolved to be had: what needs it will be skipped"
fi
consul=
[[ -x $cache/consul || ! -f $here/consul.sh ]] || consul=wanted

# It knows by itself whether there is something to do. Where there is no such Debian to be had, the tests
# of whole hosts are skipped.
root() {
    [[ $what != demo ]] || return 0
    "$here/root.sh" bookworm "$cache" && "$here/root.sh" trixie "$cache" && return 0
    [[ ${V6POD_TEST_REQUIRE:-} != all ]] || fail "there is no root for whole hosts"
    say "there is no root for whole hosts: what needs one will be skipped"
}

client=
[[ $what == demo || -x $cache/schemathesis/bin/schemathesis ]] || client=wanted

if ((${#missing[@]} == 0)) && [[ -z $consul && -z $client ]]; then
    root
    say "all there"
    exit 0
fi
if ((EUID != 0)); then
    ((${#missing[@]} == 0)) || fail "missing: as root, apt-get install --no-install-recommends ${missing[*]}"
    [[ -z $consul ]] || fail "Consul is missing: as root, $here/consul.sh $cache"
    fail "schemathesis is missing: run this as root"
fi

export DEBIAN_FRONTEND=noninteractive
say "reading the lists of packages"
apt-get update -q
if ((${#missing[@]} > 0)); then
    say "installing ${missing[*]}"
    apt-get install -q -y --no-install-recommends "${missing[@]}"
fi
if [[ -n $consul ]]; then
    say "fetching Consul for the tests"
    sh "$here/consul.sh" "$cache"
fi
if [[ -n $client ]]; then
    say "installing schemathesis $schemathesis for the tests"
    # In one piece or not at all: a half is not taken for a whole.
    mkdir -p "$cache" && rm -rf "$cache/schemathesis"
    /usr/bin/python3 -m venv "$cache/schemathesis"
    "$cache/schemathesis/bin/pip" install --quiet "schemathesis==$schemathesis" ||
        { rm -rf "$cache/schemathesis"; fail "schemathesis could not be installed"; }
fi
root
say "done"
