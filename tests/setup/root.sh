#!/usr/bin/env bash
# Makes the root of a Debian with systemd and rootless podman, for the tests that boot whole hosts, at
# DEST/root-SUITE. Nobody boots it itself: it is the lower layer of each host's overlay. The suite
# networkmanager is trixie with NetworkManager, which is off.
#
# The mirror is the one that apt is set up with here. Doing it again is cheap: a root that was made by
# this list of packages is left as it is. As root, on Debian.
set -euo pipefail

usage() { echo "usage: $0 SUITE [DEST]   (DEST: /var/cache/v6pod-tests unless given)" >&2; exit 64; }
(($# == 1 || $# == 2)) || usage
case $1 in '' | -* | *[!a-z]*) usage ;; esac
suite=$1
dest=${2:-/var/cache/v6pod-tests}
root=$dest/root-$suite

# What makes podman's bridges.
case $suite in bullseye) bridges=(containernetworking-plugins) ;; *) bridges=(netavark aardvark-dns) ;; esac

# The one list.
packages=(
    # A host that is booted and logged in to.
    systemd systemd-sysv dbus dbus-user-session libpam-systemd
    # Rootless podman with all its networks. Without catatonit pods have no infra container.
    podman catatonit slirp4netns "${bridges[@]}" crun runc uidmap fuse-overlayfs nftables
    # The tests' own.
    busybox-static curl iproute2 iputils-ping make procps
)

# What bridges' rules are written with; podman's own way out, where it is not slirp4netns any more.
case $suite in bullseye | bookworm) packages+=(iptables) ;; *) packages+=(passt) ;; esac

# The first with plugins of CNI 1.1: what ours is measured by, and run here, outside of any host.
case $suite in forky) packages+=(containernetworking-plugins) ;; esac

case $suite in networkmanager) packages+=(network-manager) ;; esac

say() { echo "root.sh: $*"; }
fail() { echo "root.sh: $*" >&2; exit 1; }

# What a root is made by, kept in it.
made_by="$suite ${packages[*]}"
stamp=var/lib/v6pod-tests-root
if [[ -f $root/$stamp && $(<"$root/$stamp") == "$made_by" ]]; then
    say "$root is there"
    exit 0
fi
((EUID == 0)) || fail "needs root"
command -v mmdebstrap >/dev/null || fail "mmdebstrap is missing: tests/setup/deps.sh"

# The first mirror that serves Debian itself: not a vendor's, not the security archive.
mirror=$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(LABEL)' |
    awk '$2 == "Debian" && $3 == "Debian" && !seen[$1]++ { print $1; exit }')
[[ -n $mirror ]] || fail "apt knows no mirror of Debian (has 'apt-get update' been run?)"

mkdir -p "$dest"
exec 9>"$dest/root-$suite.lock"
flock 9
if [[ -f $root/$stamp && $(<"$root/$stamp") == "$made_by" ]]; then
    say "$root is there: another run has made it"
    exit 0
fi
say "making $root, $suite from $mirror (a minute or two)"
rm -rf "$root.new"
trap 'rm -rf "$root.new"' EXIT
list=$(IFS=,; echo "${packages[*]}")
# An old suite's release file may have run out; its signature is checked all the same. What is
# downloaded is not kept, and documentation is left out but for ours.
sources=("$suite" "$root.new" "$mirror")
pin=true
if [[ $suite == experimental ]]; then
    # Unstable, with what is newest of podman.
    sources=(sid "$root.new" "deb $mirror sid main" "deb $mirror experimental main")
    pin='printf "%s\n" "Package: podman* netavark aardvark-dns passt crun golang-github-containers-*" \
        "Pin: release a=experimental" "Pin-Priority: 600" >"$1/etc/apt/preferences.d/experimental"'
fi
off=true
if [[ $suite == networkmanager ]]; then
    sources=(trixie "$root.new" "$mirror")
    off='systemctl --quiet --root="$1" disable NetworkManager NetworkManager-wait-online'
fi
mmdebstrap --quiet --mode=root --variant=minbase --include="$list" --setup-hook="$pin" \
    --customize-hook="$off" \
    --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    "${sources[@]}"
# A root that many hosts share has no identity; each gets one when it boots.
: >"$root.new/etc/machine-id"
printf '%s' "$made_by" >"$root.new/$stamp"
# A rename, so that whoever looks at the same time sees a whole root or none.
rm -rf "$root"
mv "$root.new" "$root"
say "$root: $(du -sh "$root" | cut -f1)"
