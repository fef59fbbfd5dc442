#!/usr/bin/env bash
# make test: everything that this machine can run, and at the end what it could not, and why.
# Words given are which of the black-box tests, as `cargo test` takes them: tests/run.sh --test by_id
# V6POD_TEST_ARGS are for the test programs themselves.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { echo "==> test: $*"; }

# Rootless containers open these as their user. Where they are root's alone, they are opened for the
# time of the tests.
declare -A modes=()
skipped=$(mktemp)
finish() {
    for device in "${!modes[@]}"; do chmod "${modes[$device]}" "$device"; done
    rm -f "$skipped"
}
trap finish EXIT
if ((EUID == 0)); then
    for device in /dev/net/tun /dev/fuse; do
        [[ -e $device ]] || continue
        mode=$(stat -c %a "$device")
        [[ $mode == 666 ]] && continue
        say "opening $device for the time of the tests"
        modes[$device]=$mode
        chmod 666 "$device"
    done
fi
export V6POD_TEST_SKIPPED=$skipped

say "building"
# The daemon that is measured: target/release/v6podd. It is linked for long by one processor: beside the others.
cargo build --locked --quiet --release -p v6pod-daemon --bin v6podd &
measured=$!
# The daemon that crashes on demand. Of the tests' own profile, so that what it stands on is built once.
cargo build --locked --workspace --bins --features v6pod-daemon/failpoints
mkdir -p target/failpoints
cp target/debug/v6podd target/debug/v6podd.d target/failpoints
cargo build --locked --workspace --bins
cargo test --locked --workspace --no-run
wait "$measured"
failed=0
everything=$(($# == 0))
# Each is asked of the whole workspace, as the building was, whatever it is to run: of a part of it, cargo builds anew
# what that part stands on.
all=(cargo test --locked --workspace --no-fail-fast)
shopt -s nullglob
tests_in() { for file in "$@"; do name=${file%/main.rs} name=${name##*/}; echo "--test ${name%.rs}"; done; }
if ((everything)); then
    say "the crates' own tests"
    # shellcheck disable=SC2046 # words
    "${all[@]}" --lib --bins $(tests_in v6pod-*/tests/*.rs v6pod-*/tests/*/main.rs) || failed=1
    "${all[@]}" --doc || failed=1
    # shellcheck disable=SC2046 # words
    set -- $(tests_in tests/tests/*.rs tests/tests/*/main.rs)
fi
say "black-box tests, one at a time (a few minutes)"
# They share users and podman, so they would only wait for each other.
"${all[@]}" "$@" -- --test-threads=1 ${V6POD_TEST_ARGS:-} || failed=1
# Last: what they stand on has other features, and takes the place of some that was built.
if ((everything)); then
    say "the fuzz targets over their corpora and what is near them"
    cargo test --locked --manifest-path fuzz/Cargo.toml --target-dir target --no-default-features ||
        failed=1
fi

if [[ -s $skipped ]]; then
    say "skipped:"
    sort -u "$skipped"
else
    say "nothing was skipped"
fi
((failed == 0)) || { say "FAILED"; exit 1; }
say "passed"
