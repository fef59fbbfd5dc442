//! Ways to break a host, one line each. The doctor has a code for each.

/// What becomes of containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Containers {
    /// One that is started has its address all the same.
    Start,
    /// One that is started has none, or does not start; behind the mending it has.
    Stop,
    /// That depends on what started before, or takes long to tell; behind the mending one has its address.
    Depend,
}
use Containers::{Depend, Start, Stop};

/// A code, what root does to the host, and what becomes of containers.
pub(crate) type Break = (&'static str, &'static str, Containers);

/// What an administrator does to podman, the programs and the system.
pub(crate) const SYSTEM: [Break; 21] = [
    ("dropin-missing", "rm /etc/containers/containers.conf.d/10-v6pod.conf", Stop),
    ("podman-conf-unreadable", "chmod 600 /etc/containers/containers.conf.d/10-v6pod.conf", Stop),
    (
        "dropin-overruled",
        "printf '[engine]\\nnetwork_cmd_path = \"/usr/bin/slirp4netns\"\\n' >/etc/containers/containers.conf.d/50-site.conf",
        Stop,
    ),
    ("podman-conf-broken", "echo '[engine' >/etc/containers/containers.conf.d/60-site.conf", Stop),
    ("hook-missing", "rm /usr/share/containers/oci/hooks.d/v6pod.json", Start),
    ("hook-broken", "echo '{' >/usr/share/containers/oci/hooks.d/v6pod.json", Stop),
    ("hook-of-others-broken", "echo '{}' >/usr/share/containers/oci/hooks.d/site.json", Stop),
    ("hook-unreadable", "chmod 600 /usr/share/containers/oci/hooks.d/v6pod.json", Stop),
    ("program-not-executable", "chmod 644 /usr/libexec/v6pod/v6pod-shim", Stop),
    ("program-not-executable", "chmod 644 /usr/libexec/v6pod/v6pod-hook", Stop),
    ("program-link", "rm /usr/libexec/v6pod/slirp4netns", Stop),
    ("slirp4netns-not-executable", "chmod 644 /usr/bin/slirp4netns", Stop),
    (
        "shim-conf-mistake",
        "echo 'sokcet = \"/run/v6pod/v6pod.sock\"' >>/etc/v6pod/shim.toml",
        Start,
    ),
    ("shim-conf-mistake", "echo '[[[' >>/etc/v6pod/shim.toml", Start),
    ("shim-conf-unreadable", "chmod 600 /etc/v6pod/shim.toml", Start),
    ("shim-socket", "sed -i '/^socket/s,run/v6pod,run/v6podd,' /etc/v6pod/shim.toml", Stop),
    ("shim-program", "sed -i '/^slirp4netns/s,auto,/opt/slirp4netns,' /etc/v6pod/shim.toml", Start),
    (
        "id-mapper-powerless",
        "chmod u-s /usr/bin/newuidmap; setcap -r /usr/bin/newuidmap || :",
        Depend,
    ),
    ("subuid-missing", "sed -i /^anna:/d /etc/subuid /etc/subgid", Depend),
    ("tun-missing", "umount /dev/net/tun; rm -f /dev/net/tun", Stop),
    // The record of the last container is gone first: it would leave room for the next one's.
    (
        "run-full",
        "timeout 20 sh -c 'while ls /run/v6pod/attachments | grep -q .; do sleep 0.1; done'; \
         used=$(df -k --output=used /run | tail -n 1); mount -o remount,size=$((used + 64))k /run; \
         head -c 1M /dev/zero >/run/filler || :",
        Stop,
    ),
];

/// What he does to the daemon.
pub(crate) const DAEMON: [Break; 13] = [
    ("daemon-stopped", "systemctl stop v6podd.socket v6podd.service", Stop),
    ("daemon-masked", "systemctl mask --now v6podd.service v6podd.socket", Stop),
    ("daemon-disabled", "systemctl disable v6podd.service", Start),
    ("config-mistake", "echo 'uplnk = \"up0\"' >>/etc/v6pod/v6pod.toml; RESTART", Stop),
    ("uplink-missing", "sed -i '1i uplink = \"wan9\"' /etc/v6pod/v6pod.toml; RESTART", Start),
    ("nft-not-executable", "chmod 644 /usr/sbin/nft; RESTART", Depend),
    (
        "daemon-unit-changed",
        "mkdir -p /etc/systemd/system/v6podd.service.d; \
         printf '[Service]\\nExecStartPre=/bin/false\\n' >/etc/systemd/system/v6podd.service.d/site.conf; \
         systemctl daemon-reload; RESTART",
        Depend,
    ),
    (
        "daemon-account",
        "systemctl stop v6podd.socket v6podd.service; userdel v6pod; RESTART",
        Depend,
    ),
    ("socket-closed", "chmod 600 /run/v6pod/v6pod.sock", Start),
    ("socket-hidden", "chmod 700 /run/v6pod", Stop),
    ("socket-missing", "rm /run/v6pod/v6pod.sock", Start),
    ("resolver-off", "systemctl mask --now v6podd-dns.socket; RESTART", Start),
    ("prefix-clash", "ip -6 route add 2001:db8:1:2:3:4::/96 dev lo; RESTART", Stop),
];

/// What he does to the network.
pub(crate) const NETWORK: [Break; 5] = [
    ("prefix-clash", "ip -6 addr add 2001:db8:1:2:3:5::1/128 dev up0", Start),
    (
        "firewall-drops",
        "nft add table inet site; \
         nft add chain inet site forward '{ type filter hook forward priority 10; policy drop; }'",
        Start,
    ),
    (
        "forwarding-off",
        "cd /proc/sys/net/ipv6/conf; if [ -e up0/force_forwarding ]; then echo 0 >up0/force_forwarding; \
         else echo 0 >all/forwarding; fi",
        Start,
    ),
    ("bridge-down", "ip link set v6pod0 down", Stop),
    ("bridge-down", "ip -6 addr flush dev v6pod0", Depend),
];

/// A code, what anna does to her own files, and what becomes of her containers.
pub(crate) const OWN: [Break; 6] = [
    (
        "dropin-overruled-by-user",
        "printf '[engine]\\nnetwork_cmd_path = \"/usr/bin/slirp4netns\"\\n' >containers.conf",
        Stop,
    ),
    (
        "dropin-overruled-by-user",
        "mkdir -p containers.conf.d; \
         printf '[engine]\\n network_cmd_path=\"/usr/bin/slirp4netns\" # mine\\n' >\"containers.conf.d/it's mine.conf\"",
        Stop,
    ),
    ("network-default", "printf '[containers]\\nnetns = \"none\"\\n' >containers.conf", Stop),
    (
        "declined-by-default",
        "printf '[containers]\\nannotations = [\"a=b\", \"v6pod=false\"]\\n' >containers.conf",
        Stop,
    ),
    (
        "hooks-dir-overridden",
        "printf '[engine]\\nhooks_dir = [\\n  \"/etc/hooks\",\\n]\\n' >containers.conf",
        Start,
    ),
    ("podman-conf-broken", "echo 'netns = host' >containers.conf", Stop),
];

/// A code, and what anna exports.
pub(crate) const VARIABLES: [(&str, &str); 2] = [
    ("dropin-overruled-by-variable", "CONTAINERS_CONF=/dev/null"),
    ("socket-variable", "V6POD_SOCKET=/tmp/none"),
];

/// The same on a host whose podman prefers pasta.
pub(crate) const PASTA: [Break; 3] = [
    ("program-link", "rm /usr/libexec/v6pod/pasta", Stop),
    ("pasta-not-executable", "chmod 644 $(readlink -f /usr/bin/pasta)", Stop),
    (
        "dropin-overruled",
        "printf '[engine]\\nhelper_binaries_dir = [\\n  \"/usr/libexec/podman\",\\n  \"/usr/lib/podman\"\\n]\\n' \
         >/etc/containers/containers.conf.d/50-site.conf",
        Stop,
    ),
];
pub(crate) const PASTA_VARIABLES: [(&str, &str); 2] = [
    ("dropin-overruled-by-variable", "CONTAINERS_CONF_OVERRIDE=/home/anna/override.conf"),
    ("helpers-variable", "CONTAINERS_HELPER_BINARY_DIR=/usr/bin"),
];
