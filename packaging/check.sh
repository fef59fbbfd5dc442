#!/usr/bin/env bash
# Builds every package of this commit as who packages it would, and looks at each: the .deb by lintian, the RPM and
# the Arch package by their own tools from the tarball of `make dist`, and the completions by their shells. As root;
# installs what that needs. Takes three builds of v6pod.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { echo "==> packages: $*"; }
fail() { echo "==> packages: $*" >&2; exit 1; }

# A package's files, and which package that is.
holds() {
    local program
    for program in bin/v6podd bin/v6podctl libexec/v6pod/v6pod-shim; do
        grep -q "/\?$program\$" <<<"$1" || fail "there is no $program in the $2"
    done
    say "the $2 has $(wc -l <<<"$1") entries"
}

((EUID == 0)) || fail "run this as root, who installs the tools"
tools=(fakeroot fish lintian makepkg rpm zsh)
missing=()
for tool in "${tools[@]}"; do
    [[ $(dpkg-query -W -f '${db:Status-Abbrev}' "$tool" 2>/dev/null || true) == ii* ]] || missing+=("$tool")
done
if ((${#missing[@]} > 0)); then
    say "installing ${missing[*]}"
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
fi

out=$PWD/target/packages
rm -rf "$out"
mkdir -p "$out"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
# What is built of other crates is built once.
export CARGO_TARGET_DIR=$PWD/target
built=(RELEASE="$CARGO_TARGET_DIR/release" SHIM="$CARGO_TARGET_DIR/shim/v6pod-shim")
# For the makes that rpmbuild and makepkg run.
flags="--no-print-directory ${built[*]}"

say "the .deb, and lintian"
make --no-print-directory deb DEBS="$out"
deb=("$out"/v6pod_*.deb)
lintian --allow-root --fail-on error,warning "${deb[@]}"

say "the completions, as installed by it"
dpkg-deb --extract "${deb[@]}" "$out/root"
share=$out/root/usr/share
ctl=$out/root/usr/bin
of_bash=$(PATH=$ctl:$PATH bash -c '. "$1"; COMP_WORDS=(v6podctl doc); COMP_CWORD=1; _v6podctl v6podctl doc v6podctl; echo "${COMPREPLY[@]}"' \
    bash "$share/bash-completion/completions/v6podctl")
of_fish=$(PATH=$ctl:$PATH fish --no-config -c 'source $argv[1]; complete -C "v6podctl doc" | cut -f 1' \
    "$share/fish/vendor_completions.d/v6podctl.fish")
# zsh completes for a terminal alone: this one is its own.
of_zsh=$(PATH=$ctl:$PATH timeout 20 zsh -f -c '
    zmodload zsh/zpty
    zpty shell zsh -f -i
    zpty -w shell "fpath=($1 \$fpath); autoload -U compinit; compinit -D -u"
    zpty -w -n shell "v6podctl doc"$'"'\t'"'
    zpty -r shell text "*v6podctl doctor*" && echo doctor
    zpty -d shell' zsh "$share/zsh/vendor-completions")
for shell in bash fish zsh; do
    of=of_$shell
    [[ ${!of} == doctor ]] || fail "$shell completes \"v6podctl doc\" to \"${!of}\""
    say "$shell completes \"v6podctl doc\" to \"${!of}\""
done

say "the tarball"
packaging/dist.sh "$out/dist"

say "the RPM"
mkdir -p "$out/rpm/SOURCES"
cp "$out/dist/v6pod-$version.tar.gz" "$out/rpm/SOURCES/"
# What it asks for is told by Fedora's names.
MAKEFLAGS=$flags rpmbuild --quiet --nodeps --define "_topdir $out/rpm" -bb "$out/dist/v6pod.spec"
holds "$(rpm --query --list --package "$out"/rpm/RPMS/*/*.rpm)" RPM

say "the Arch package"
# makepkg refuses root, by whatever name.
MAKEFLAGS=$flags unshare --user --map-user=1000 --map-group=1000 \
    sh -c 'cd "$1" && makepkg --nodeps --noconfirm' sh "$out/dist"
holds "$(tar --list --file "$out"/dist/v6pod-*.pkg.tar.*)" "Arch package"

say "all as it should be"
