//! Issue 8, line 1: ways to break a host, each made for real on a whole one. The doctor names each by its code, and
//! what he prints, run as printed by who is to run it, mends it.
//!
//! ```text
//!   outside ── up0 ┌ Debian 12, or 13 with pasta ───────────────────────────┐
//!   (sends router  │ v6podd (root's) ── v6pod0 ── port ── eth0 ┌ container  │
//!    advertise-    │ v6podctl doctor, as root and as anna      │ of anna    │
//!    ments)        └────────────────────────────────────────────────────────┘
//! ```
//!
//! A host is broken again and again: behind each mending both doctors find nothing at all.
#![allow(clippy::expect_used, reason = "a test")]

use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::Value;
use v6pod_tests::{
    Consul, Finished, IMAGE, Login, OUTSIDE_V6, PATIENCE, PREFIX, Suite, WholeHost, eventually,
    require, run, side_by_side,
};

/// What becomes of containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Containers {
    /// One that is started has its address all the same.
    Start,
    /// One that is started has none, or does not start; behind the mending it has.
    Stop,
    /// That depends on what started before, or takes long to tell; behind the mending one has its address.
    Depend,
}
use Containers::{Depend, Start, Stop};

/// A code, what root does to the host, and what becomes of containers.
type Break = (&'static str, &'static str, Containers);

/// What an administrator does to podman, the programs and the system.
const SYSTEM: [Break; 21] = [
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
    (
        "run-full",
        "used=$(df -k --output=used /run | tail -n 1); mount -o remount,size=$((used + 64))k /run; \
         head -c 1M /dev/zero >/run/filler || :",
        Stop,
    ),
];

/// What he does to the daemon.
const DAEMON: [Break; 13] = [
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
const NETWORK: [Break; 5] = [
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
const OWN: [Break; 6] = [
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
const VARIABLES: [(&str, &str); 2] = [
    ("dropin-overruled-by-variable", "CONTAINERS_CONF=/dev/null"),
    ("socket-variable", "V6POD_SOCKET=/tmp/none"),
];

/// The same on a host whose podman prefers pasta.
const PASTA: [Break; 3] = [
    ("program-link", "rm /usr/libexec/v6pod/pasta", Stop),
    ("pasta-not-executable", "chmod 644 $(readlink -f /usr/bin/pasta)", Stop),
    (
        "dropin-overruled",
        "printf '[engine]\\nhelper_binaries_dir = [\\n  \"/usr/libexec/podman\",\\n  \"/usr/lib/podman\"\\n]\\n' \
         >/etc/containers/containers.conf.d/50-site.conf",
        Stop,
    ),
];
const PASTA_VARIABLES: [(&str, &str); 2] = [
    ("dropin-overruled-by-variable", "CONTAINERS_CONF_OVERRIDE=/home/anna/override.conf"),
    ("helpers-variable", "CONTAINERS_HELPER_BINARY_DIR=/usr/bin"),
];

/// A host, who is on it, and what was broken on it so far.
struct Ward<'a> {
    host: &'a WholeHost,
    anna: Login<'a>,
    table: String,
    broken: usize,
}

/// What a doctor's JSON says.
struct Seen {
    report: Value,
    said: Finished,
}

impl Seen {
    #[track_caller]
    fn of(said: Finished) -> Self {
        let report = serde_json::from_str(&said.stdout).unwrap_or_else(|e| panic!("{e}: {said}"));
        Self { report, said }
    }

    #[track_caller]
    fn findings(&self) -> &[Value] {
        self.report["findings"].as_array().expect("findings")
    }

    fn finding(&self, code: &str) -> Option<&Value> {
        self.findings().iter().find(|finding| finding["code"] == code)
    }

    fn is_healthy(&self) -> bool {
        self.findings().is_empty() && self.said.status.success()
    }
}

/// Who runs a command, and the command.
#[track_caller]
fn commands(finding: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let all = finding["commands"].as_array().expect("commands").iter();
    let all: Vec<_> = all.map(|command| (text(&command["as"]), text(&command["line"]))).collect();
    assert!(!all.is_empty(), "nothing mends {finding}");
    all
}

impl<'a> Ward<'a> {
    #[track_caller]
    fn new(host: &'a WholeHost) -> Self {
        // A new network has it on where br_netfilter is loaded: the machine's doing, not the host's.
        host.sh("f=/proc/sys/net/bridge/bridge-nf-call-ip6tables; [ ! -e $f ] || echo 0 >$f").ok();
        let ward = Self { host, anna: host.log_in("anna"), table: String::new(), broken: 0 };
        ward.all_is_well();
        ward
    }

    #[track_caller]
    fn by_root(&self) -> Seen {
        Seen::of(self.host.sh("v6podctl --json doctor || exit $?"))
    }

    #[track_caller]
    fn by_anna(&self, before: &str) -> Seen {
        Seen::of(self.anna.run("sh", &["-c", &format!("{before} v6podctl --json doctor")]))
    }

    #[track_caller]
    fn all_is_well(&self) {
        for doctor in [&(|| self.by_root()) as &dyn Fn() -> Seen, &|| self.by_anna("")] {
            let deadline = Instant::now() + PATIENCE;
            loop {
                let seen = doctor();
                if seen.is_healthy() {
                    break;
                }
                assert!(Instant::now() < deadline, "{:#}\n{}", seen.report, seen.said);
            }
        }
    }

    /// Whether a container of anna's has its address.
    #[track_caller]
    fn serves(&self, before: &str) -> bool {
        let prefix = PREFIX.strip_suffix("::/80").expect("a /80");
        let inside = format!("ip -6 -o addr | grep -q {prefix}");
        let line = format!("{before} podman run --rm {IMAGE} sh -c '{inside}'");
        self.anna.run("sh", &["-c", &line]).status.success()
    }

    /// Runs a command as who is to run it.
    #[track_caller]
    fn mend(&self, (by, line): &(String, String)) {
        let said = match &**by {
            "root" => self.host.sh(line),
            "anna" => self.anna.run("sh", &["-c", line]),
            other => panic!("{other} is nobody here: {line}"),
        };
        assert!(said.status.success(), "{said}\n{}", self.host.journal("v6podd.service"));
    }

    /// Waits until a doctor names it, and gives the commands.
    #[track_caller]
    fn named(&self, code: &str, doctor: impl Fn() -> Seen) -> Vec<(String, String)> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = doctor();
            if let Some(finding) = seen.finding(code) {
                let broken = finding["severity"] == "broken";
                assert_eq!(seen.said.status.code(), Some(i32::from(broken)), "{}", seen.said);
                return commands(finding);
            }
            assert!(Instant::now() < deadline, "{code} is not in {:#}", seen.report);
        }
    }

    /// Notes what was mended, and how.
    fn note(&mut self, code: &str, commands: &[(String, String)], began: Instant) {
        self.broken += 1;
        let took = began.elapsed().as_millis();
        let (by, line) = &commands[0];
        let _ = writeln!(self.table, "{:2}  {code:30} {took:5} ms  {by}: {line}", self.broken);
        eprintln!("{:2}  {code:30} {took:5} ms  {by}: {line}", self.broken);
    }

    /// Breaks something of the host's as root, has it named by both doctors and mended.
    #[track_caller]
    fn host_is_mended(&mut self, (code, script, containers): Break) {
        let began = Instant::now();
        let restart = "systemctl restart v6podd.service || :";
        self.host.sh(&script.replace("RESTART", restart)).ok();
        let commands = self.named(code, || self.by_root());
        assert_eq!(self.named(code, || self.by_anna("")), commands, "they say the same");
        self.ends_well(code, containers, &commands, began);
    }

    /// Breaks something of anna's as her.
    #[track_caller]
    fn anna_is_mended(&mut self, (code, script, containers): Break) {
        let began = Instant::now();
        let script = format!("mkdir -p ~/.config/containers; cd ~/.config/containers; {script}");
        self.anna.run("sh", &["-c", &script]).ok();
        let commands = self.named(code, || self.by_anna(""));
        assert!(commands.iter().all(|(by, _)| by == "anna"), "{commands:?}");
        self.ends_well(code, containers, &commands, began);
        self.anna.run("sh", &["-c", "rm -r ~/.config/containers"]).ok();
    }

    #[track_caller]
    fn ends_well(
        &mut self,
        code: &str,
        containers: Containers,
        commands: &[(String, String)],
        began: Instant,
    ) {
        match containers {
            Stop => assert!(!self.serves(""), "{code}: a container has its address"),
            Start => assert!(self.serves(""), "{code}: a container has no address"),
            Depend => {}
        }
        commands.iter().for_each(|command| self.mend(command));
        self.all_is_well();
        if containers != Start {
            assert!(self.serves(""), "{code}: {commands:?} does not give containers their address");
        }
        self.note(code, commands, began);
    }

    /// Breaks anna's environment, which what mends it mends in her shell alone.
    #[track_caller]
    fn shell_is_mended(&mut self, (code, variable): (&str, &str)) {
        let began = Instant::now();
        let broken = format!("export {variable};");
        let commands = self.named(code, || self.by_anna(&broken));
        assert!(!self.serves(&broken), "{code}: a container has its address");
        let [(by, line)] = &*commands else { panic!("{commands:?}") };
        assert_eq!(by, "anna");
        let mended = format!("{broken} {line};");
        let seen = self.by_anna(&mended);
        assert!(seen.is_healthy() && self.serves(&mended), "{:#}", seen.report);
        self.note(code, &commands, began);
    }
}

/// What one host goes through: broken again and again.
type Course = (Suite, fn(&mut Ward<'_>));

/// Each on a host of its own.
const COURSES: [Course; 4] = [
    (Suite::Bookworm, system_is_mended),
    (Suite::Bookworm, daemon_and_network_are_mended),
    (Suite::Bookworm, what_is_annas_is_mended),
    (Suite::Trixie, pasta_is_mended),
];

#[test]
fn each_way_to_break_a_host_is_named_and_mended_by_the_command_that_is_printed() {
    let _machine = require!(WholeHost, Consul);
    let broken = AtomicUsize::new(0);
    side_by_side(COURSES, |(suite, course)| {
        let host = WholeHost::serving(suite);
        let mut ward = Ward::new(&host);
        assert!(ward.serves(""));
        course(&mut ward);
        eprintln!("{suite:?}\n{}", ward.table);
        broken.fetch_add(ward.broken, Ordering::Relaxed);
    });
    let (broken, least) = (broken.into_inner(), 25 + PASTA.len() + PASTA_VARIABLES.len());
    assert!(broken >= least, "{broken} ways are not {least}");
}

fn system_is_mended(ward: &mut Ward<'_>) {
    SYSTEM.into_iter().for_each(|of_host| ward.host_is_mended(of_host));
}

fn daemon_and_network_are_mended(ward: &mut Ward<'_>) {
    DAEMON.into_iter().chain(NETWORK).for_each(|of_host| ward.host_is_mended(of_host));
}

fn what_is_annas_is_mended(ward: &mut Ward<'_>) {
    OWN.into_iter().for_each(|of_anna| ward.anna_is_mended(of_anna));
    VARIABLES.into_iter().for_each(|variable| ward.shell_is_mended(variable));
    advertisements_are_heard_again(ward);
    the_prefix_is_answered_for(ward);
    names_go_to_consul_again(ward);
}

fn pasta_is_mended(ward: &mut Ward<'_>) {
    PASTA.into_iter().for_each(|of_host| ward.host_is_mended(of_host));
    let defaults = "[engine]\nhelper_binaries_dir = [\"/usr/bin\"]\n";
    ward.host.write("/home/anna/override.conf", defaults);
    PASTA_VARIABLES.into_iter().for_each(|variable| ward.shell_is_mended(variable));
}

/// A router's advertisement of itself, to all nodes (RFC 4861, section 4.2).
const ADVERTISE: &str = "
import socket
s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
link = socket.if_nametoindex('out0')
s.sendto(bytes([134, 0, 0, 0, 64, 0, 7, 8]) + bytes(8), ('ff02::1', 0, 0, link))
";

/// The default route comes by advertisements, and somebody has the host forward.
#[track_caller]
fn advertisements_are_heard_again(ward: &mut Ward<'_>) {
    let (host, began) = (ward.host, Instant::now());
    let advertised = || {
        run(host.net().outside("python3").args(["-c", ADVERTISE])).ok();
        host.sh("ip -6 route show default").ok().contains("proto ra")
    };
    host.sh(
        "cd /proc/sys/net/ipv6/conf; cat all/forwarding >/run/forwarding; echo 0 >all/forwarding; \
             echo 1 >up0/accept_ra; ip -6 route del default",
    )
    .ok();
    eventually(PATIENCE, "an advertised route", || advertised().then_some(()));
    host.sh("echo 1 >/proc/sys/net/ipv6/conf/all/forwarding").ok();
    assert!(!advertised(), "Linux has not forgotten it");
    let commands = ward.named("ra-lost", || ward.by_root());
    commands.iter().for_each(|command| ward.mend(command));
    eventually(PATIENCE, "an advertised route", || advertised().then_some(()));
    ward.all_is_well();
    host.sh(&format!(
        "ip -6 route del default; ip -6 route add default via {OUTSIDE_V6}; \
         cat /run/forwarding >/proc/sys/net/ipv6/conf/all/forwarding"
    ))
    .ok();
    ward.note("ra-lost", &commands, began);
    // Where an interface can forward by itself, Linux has it stop when all are told to.
    let began = Instant::now();
    for finding in ward.by_root().findings() {
        assert_eq!(finding["code"], "forwarding-off");
        let again = self::commands(finding);
        again.iter().for_each(|command| ward.mend(command));
        ward.note("forwarding-off", &again, began);
    }
    ward.all_is_well();
}

/// The prefix is a part of the uplink's subnet, and nobody routes it here.
#[track_caller]
fn the_prefix_is_answered_for(ward: &mut Ward<'_>) {
    let (host, began) = (ward.host, Instant::now());
    let route = |word: &str| {
        run(host.net().outside("ip").args([
            "-6",
            "route",
            word,
            PREFIX,
            "via",
            "2001:db8:ffff::2",
        ]))
        .ok();
    };
    let subnet = |word: &str| {
        host.sh(&format!("ip -6 addr {word} 2001:db8:1:2::5/64 dev up0 nodad")).ok();
        run(host.net().outside("ip").args([
            "-6",
            "addr",
            word,
            "2001:db8:1:2::1/64",
            "dev",
            "out0",
        ]));
    };
    route("del");
    subnet("add");
    let container = ward.anna.sleeper("web", &[]);
    let address = ward.anna.attachment(&container).address.to_string();
    let ping = |wait: &str| {
        run(host.net().outside("ping").args(["-c", "1", "-W", wait, &address])).status.success()
    };
    assert!(!ping("1"), "who routes it?");
    let commands = ward.named("prefix-on-link", || ward.by_anna(""));
    commands.iter().for_each(|command| ward.mend(command));
    ward.all_is_well();
    assert!(ping("10"), "it is not answered for");
    ward.anna.remove(&["web"]);
    subnet("del");
    route("add");
    host.sh("sed -i /ndp_proxy/d /etc/v6pod/v6pod.toml; systemctl restart v6podd.service").ok();
    ward.all_is_well();
    ward.note("prefix-on-link", &commands, began);
}

/// A Consul that lets nobody do anything without a token, and the token that may do everything.
const MANAGER: &str = "76367436-7436-7436-7436-763674367436";
const AGENT: &str = r#"
install -m 755 "$1" /usr/local/bin/consul
mkdir -p /etc/consul.d
cat >/etc/consul.d/agent.hcl <<'END'
server = true
bootstrap_expect = 1
data_dir = "/var/lib/consul"
bind_addr = "127.0.0.1"
client_addr = "::1"
disable_update_check = true
performance { raft_multiplier = 1 }
acl {
  enabled = true
  default_policy = "deny"
  tokens { master = "MANAGER" agent = "MANAGER" }
}
END
cat >/etc/systemd/system/consul.service <<'END'
[Service]
ExecStart=/usr/local/bin/consul agent -config-dir=/etc/consul.d
END
systemctl daemon-reload
systemctl start consul.service
"#;

/// Consul is away, or does not know v6podd's token, or v6podd has none.
#[track_caller]
fn names_go_to_consul_again(ward: &mut Ward<'_>) {
    let host = ward.host;
    let consul = host.take_in(&Consul::program().expect("Consul was asked for"));
    host.sh(&format!("set -- {consul}\n{}", AGENT.replace("MANAGER", MANAGER))).ok();
    let as_manager =
        format!("export CONSUL_HTTP_ADDR=http://[::1]:8500 CONSUL_HTTP_TOKEN={MANAGER};");
    eventually(PATIENCE, "a leader", || {
        host.sh(&format!("{as_manager} consul acl token list")).status.success().then_some(())
    });
    host.write(
        "/etc/v6pod/v6pod.toml",
        &format!(
            "prefix = \"{PREFIX}\"\n[registry]\nkind = \"consul\"\n\
             [registry.consul]\ntoken_file = \"consul-token\"\n"
        ),
    );
    let restart = "systemctl restart v6podd.service";
    for (code, script) in [
        ("consul-token-missing", restart.to_owned()),
        (
            "consul-token-refused",
            format!("echo {} >/etc/v6pod/consul-token; {restart}", MANAGER.replace('7', "1")),
        ),
        ("consul-away", "systemctl stop consul.service".to_owned()),
    ] {
        let began = Instant::now();
        host.sh(&script).ok();
        let commands = ward.named(code, || ward.by_root());
        for (by, line) in &commands {
            ward.mend(&(by.clone(), format!("{as_manager} {line}")));
        }
        ward.all_is_well();
        ward.note(code, &commands, began);
    }
    let container = ward.anna.sleeper("web", &[]);
    let address = ward.anna.attachment(&container).address.to_string();
    eventually(PATIENCE, "it is in Consul", || {
        let list = format!(
            "{as_manager} curl -sS --fail --globoff -H \"X-Consul-Token: {MANAGER}\" http://[::1]:8500/v1/agent/services"
        );
        host.sh(&list).stdout.contains(&address).then_some(())
    });
}
