#!/usr/bin/env bash
# make demo: v6pod on this machine, from nothing and back to nothing, in well under a minute.
#
#   host ── v6podd (instance v6pdemo, a prefix of its own) ── v6pdemo0
#     ├── port ── eth0 [ web: httpd, rootless container of v6demo1 ]
#     └── port ── eth0 [ a rootless container of v6demo2 ]
#
# It makes two users, runs the daemon and the shim from target/, and takes all of it away again,
# also when something goes wrong. It fails if anything is not as it says.
#
# From the environment: RELEASE and SHIM as in the Makefile, to show another build.
set -euo pipefail
cd "$(dirname "$0")/.."

instance=v6pdemo
users=(v6demo1 v6demo2)
comment='v6pod demo, temporary'
image=localhost/v6demo
devices=(/dev/net/tun /dev/fuse)
release=${RELEASE:-target/release}
programs=("$release/v6podd" "$release/v6podctl" "${SHIM:-target/shim/v6pod-shim}")

step=0
say() { step=$((step + 1)); printf '\n==> %d. %s\n' "$step" "$*"; }
note() { printf '    %s\n' "$*"; }
show() { sed 's/^/    | /'; }
die() { printf '\n==> demo: %s\n' "$*" >&2; exit 1; }

# --- what there was before, and putting it back -------------------------------------------------

work=
daemon=
made_runtime_dirs=()
declare -A modes=() sysctls=()

remember_sysctls() {
    local file
    for file in /proc/sys/net/ipv6/conf/*/{forwarding,force_forwarding,accept_ra,proxy_ndp}; do
        if [[ -r $file ]]; then sysctls[$file]=$(<"$file"); fi
    done
}

# `all` before the rest: writing it changes them.
restore_sysctls() {
    local file
    for file in $(printf '%s\n' "${!sysctls[@]}" | sort); do
        [[ -e $file ]] || continue
        [[ $(<"$file") == "${sysctls[$file]}" ]] && continue
        note "putting $file back to ${sysctls[$file]}"
        echo "${sysctls[$file]}" >"$file"
    done
}

# A user's processes, those aside that have ended and only wait to be reaped.
processes_of() { ps -o pid=,stat=,args= -u "$1" | awk '$2 !~ /^Z/' || true; }

remove_user() {
    local user=$1 uid
    uid=$(id -u "$user" 2>/dev/null) || return 0
    as "$user" podman rm -f -a -t 0 >/dev/null 2>&1 || true
    # Podman's pause process, and whatever else is this user's.
    local pids
    for _ in {1..50}; do
        pids=$(processes_of "$uid" | awk '{ print $1 }')
        [[ -n $pids ]] || break
        # shellcheck disable=SC2086
        kill -KILL $pids 2>/dev/null || true
        sleep 0.1
    done
    userdel --remove --force "$user" 2>/dev/null || true
}

stop_daemon() {
    [[ -n $daemon ]] || return 0
    kill "$daemon" 2>/dev/null || true
    for _ in {1..100}; do
        kill -0 "$daemon" 2>/dev/null || break
        sleep 0.1
    done
    kill -KILL "$daemon" 2>/dev/null || true
    wait "$daemon" 2>/dev/null || true
    daemon=
}

purge() {
    [[ -n $work && -e $work/v6pod.toml ]] || return 0
    "$work/v6podctl" purge --config "$work/v6pod.toml" \
        --run-dir "$work/run" --state-dir "$work/state" | show
}

clean_up() {
    local user device dir
    for user in "${users[@]}"; do remove_user "$user"; done
    stop_daemon
    purge
    restore_sysctls
    for dir in "${made_runtime_dirs[@]}"; do rm -rf "$dir"; done
    for device in "${!modes[@]}"; do chmod "${modes[$device]}" "$device"; done
    [[ -z $work ]] || rm -rf "$work"
}

failed() {
    local status=$?
    trap - EXIT
    set +e
    if ((status != 0)) && [[ -n $work && -e $work/log ]]; then
        printf '\n==> demo: the end of the daemon'\''s log\n' >&2
        tail -n 40 "$work/log" >&2
    fi
    clean_up >&2
    ((status == 0)) || printf '\n==> demo: FAILED in step %d\n' "$step" >&2
    exit "$status"
}

# --- users and their podman ---------------------------------------------------------------------

# Runs a command as a user, with what a login would give him.
as() {
    local user=$1 home uid
    shift
    home=$(getent passwd "$user" | cut -d: -f6)
    uid=$(id -u "$user")
    (cd "$home" && exec timeout 60 setpriv --reuid "$user" --regid "$(id -g "$user")" --init-groups -- \
        env -i HOME="$home" USER="$user" LOGNAME="$user" XDG_RUNTIME_DIR="/run/user/$uid" \
        PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin \
        V6POD_SOCKET="$work/run/$instance.sock" "$@")
}

make_user() {
    local user=$1 uid home runtime
    useradd --create-home --shell /bin/sh --comment "$comment" "$user"
    uid=$(id -u "$user")
    home=$(getent passwd "$user" | cut -d: -f6)
    # logind makes it for those who log in; nobody does here.
    if [[ ! -e /run/user/$uid ]]; then
        mkdir -p "/run/user/$uid"
        chown "$user:" "/run/user/$uid"
        chmod 700 "/run/user/$uid"
        made_runtime_dirs+=("/run/user/$uid")
    fi
    # crun wants cgroup v2 alone; runc takes the other layouts too.
    runtime=runc
    [[ -e /sys/fs/cgroup/cgroup.controllers ]] && runtime=crun
    install -d -o "$user" -g "$(id -g "$user")" "$home/.config" "$home/.config/containers"
    # The one line that v6pod's package brings for everybody is network_cmd_path; the others keep
    # podman quiet where there is no systemd session.
    cat >"$home/.config/containers/containers.conf" <<EOF
[containers]
pids_limit = 0
[engine]
runtime = "$runtime"
cgroup_manager = "cgroupfs"
events_logger = "file"
network_cmd_path = "$work/slirp4netns"
EOF
    as "$user" podman import --change 'ENV PATH=/bin' "$work/image.tar" "$image" >/dev/null 2>&1 ||
        die "podman import failed for $user"
}

make_image() {
    local root=$work/image applet
    mkdir -p "$root/bin" "$root/www"
    chmod 755 "$root"
    cp "$(command -v busybox)" "$root/bin/busybox"
    for applet in sh httpd wget ip cat sleep; do ln -s busybox "$root/bin/$applet"; done
    echo 'Hello from a rootless container.' >"$root/www/index.html"
    tar -C "$root" -cf "$work/image.tar" .
    chmod 644 "$work/image.tar"
}

# --- the daemon ---------------------------------------------------------------------------------

ctl() { "$work/v6podctl" --socket "$work/run/$instance.sock" "$@"; }

start_daemon() {
    cat >"$work/v6pod.toml" <<EOF
instance = "$instance"
prefix = "auto"

[registry]
kind = "embedded"

[api]
tcp = []
EOF
    "$work/v6podd" --config "$work/v6pod.toml" --run-dir "$work/run" --state-dir "$work/state" \
        >"$work/log" 2>&1 &
    daemon=$!
    for _ in {1..100}; do
        kill -0 "$daemon" 2>/dev/null || die "v6podd did not start"
        curl -sf -o /dev/null --unix-socket "$work/run/$instance.sock" http://localhost/healthz && return
        sleep 0.1
    done
    die "v6podd did not answer within 10 seconds"
}

attachments() { ctl --json ls | jq '.attachments | length'; }

# Waits until there are this many attachments.
await_attachments() {
    for _ in {1..100}; do
        [[ $(attachments) == "$1" ]] && return
        sleep 0.1
    done
    die "there should be $1 attachments: $(ctl ls)"
}

# --- nothing left -------------------------------------------------------------------------------

left=0
is_gone() {
    local what=$1 found=$2
    if [[ -z $found ]]; then
        note "gone: $what"
    else
        note "LEFT: $what"
        show <<<"$found"
        left=1
    fi
}

check_nothing_is_left() {
    local user device changed='' wrong='' file
    is_gone "the bridge and its ports" "$(ip -o link show | grep -E "$instance|$port" || true)"
    is_gone "routes" "$(ip -6 route show table all | grep -E "$instance|${prefix%::*}:" || true)"
    is_gone "neighbours" "$(ip -6 neigh show nud all | grep -E "$instance|${prefix%::*}:" || true)"
    is_gone "firewall tables" "$(nft list tables | grep -F "$instance" || true)"
    is_gone "the users" "$(getent passwd "${users[@]}" || true)"
    is_gone "their subordinate ids" "$(grep -hE "^(${users[0]}|${users[1]}):" /etc/subuid /etc/subgid || true)"
    for user in "${uids[@]}"; do
        is_gone "processes of uid $user" "$(processes_of "$user")"
        is_gone "/run/user/$user" "$([[ ! -e /run/user/$user ]] || echo "still there")"
    done
    is_gone "files" "$([[ ! -e $work ]] || find "$work")"
    for device in "${!modes[@]}"; do
        [[ $(stat -c %a "$device") == "${modes[$device]}" ]] || wrong+="$device "
    done
    is_gone "opened devices" "$wrong"
    for file in "${!sysctls[@]}"; do
        [[ ! -e $file || $(<"$file") == "${sysctls[$file]}" ]] || changed+="$file "
    done
    is_gone "changed sysctls" "$changed"
    ((left == 0)) || die "something was left behind"
}

# --- the demo -----------------------------------------------------------------------------------

((EUID == 0)) || die "run me as root: I make two users and start a daemon"
[[ -e /proc/sys/net/ipv6 ]] || die "this kernel has no IPv6"
for file in "${programs[@]}"; do
    [[ -x $file ]] || die "$file is not built: make build"
done
if ip link show "${instance}0" >/dev/null 2>&1; then
    die "${instance}0 is there already: does another demo run?"
fi
for user in "${users[@]}"; do
    getent passwd "$user" >/dev/null || continue
    [[ $(getent passwd "$user" | cut -d: -f5) == "$comment"* ]] ||
        die "there is a user $user who is not the demo's"
done

trap failed EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
work=$(mktemp -d /var/tmp/v6pdemo.XXXXXX)
chmod 755 "$work"
for user in "${users[@]}"; do remove_user "$user"; done
remember_sysctls
cp "${programs[@]}" "$work/"
ln -s v6pod-shim "$work/slirp4netns"

say "Two ordinary users, each with rootless podman and an image of busybox"
for device in "${devices[@]}"; do
    [[ -e $device ]] || continue
    mode=$(stat -c %a "$device")
    [[ $mode == 666 ]] && continue
    note "opening $device, which is root's alone here, until the end"
    modes[$device]=$mode
    chmod 666 "$device"
done
make_image
uids=()
for user in "${users[@]}"; do
    make_user "$user"
    uids+=("$(id -u "$user")")
    note "$user, uid $(id -u "$user")"
done

say "v6podd, with a prefix made up for this host"
start_daemon
status=$(curl -sf --unix-socket "$work/run/$instance.sock" http://localhost/api/status)
prefix=$(jq -r .prefix.prefix <<<"$status")
resolver=$(jq -r .resolver.address <<<"$status")
note "prefix $prefix, gateway $(jq -r .gateway <<<"$status"), bridge $(jq -r .bridge <<<"$status")"

say "${users[0]}\$ podman run -d --name web $image httpd -f -p 80 -h /www"
as "${users[0]}" podman run -d --name web "$image" httpd -f -p 80 -h /www | cut -c1-12 | show
await_attachments 1

say "Its address"
echo '$ v6podctl ls' | show
ctl ls | show
web=$(ctl --json show web)
address=$(jq -r .address <<<"$web")
port=$(jq -r .port <<<"$web")
[[ $address == *:* ]] || die "no IPv6 address in $web"
note "web is $address"

say "What the container sees"
as "${users[0]}" podman exec web ip -6 addr show dev eth0 | show
as "${users[0]}" podman exec web ip -6 route | show
seen=$(as "${users[0]}" podman exec web ip -6 addr show dev eth0)
[[ $seen == *"$address/128"* ]] || die "$address is not on eth0"

say "The page, from the host: curl http://[$address]/"
page=$(curl -sS --globoff --max-time 10 --noproxy '*' --retry 5 --retry-connrefused "http://[$address]/")
show <<<"$page"
[[ $page == Hello* ]] || die "that is not the page"

say "The page, for ${users[1]}, and from his own container"
url="http://[$address]/"
closed=$(as "${users[1]}" curl -sS --globoff --max-time 2 --noproxy '*' "$url" 2>&1) &&
    die "it is open before it was opened"
show <<<"$closed"
note "nobody gets in but root and ${users[0]}, until it is opened:"
echo '$ v6podctl open web tcp/80' | show
as "${users[0]}" "$work/v6podctl" --socket "$work/run/$instance.sock" open web tcp/80 | show
page=$(as "${users[1]}" podman run --rm "$image" wget -qO- "$url")
show <<<"$page"
[[ $page == Hello* ]] || die "that is not the page"

say "The same by its name, which v6podd answers for at $resolver"
echo "\$ dig @$resolver +short web.v6pod.internal AAAA" | show
named=$(dig "@$resolver" +short +time=2 web.v6pod.internal AAAA)
show <<<"$named"
[[ $named == "$address" ]] || die "that is not web's address"
# Without v6pod's hook, which only an installation has, a container is told of the resolver by hand.
echo "\$ podman run --rm --dns $resolver $image wget -qO- http://web.v6pod.internal/" | show
page=$(as "${users[1]}" podman run --rm --dns "$resolver" "$image" wget -qO- http://web.v6pod.internal/)
show <<<"$page"
[[ $page == Hello* ]] || die "that is not the page"

say "${users[0]}\$ podman stop web"
as "${users[0]}" podman stop -t 0 web | show
await_attachments 0
note "no attachment left"
records=$(find "$work/run/attachments" -type f)
[[ -z $records ]] || die "records left: $records"

say "Everything away"
clean_up
check_nothing_is_left
trap - EXIT

printf '\n==> demo: all as it should be\n'
