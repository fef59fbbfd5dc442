//! What takes more than a line to break: a router that is not heard, a prefix that nobody answers for, a Consul that
//! is away.

use std::time::Instant;

use v6pod_tests::{Consul, OUTSIDE_V6, PATIENCE, PREFIX, eventually, run};

use crate::ward::{self, Ward};

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
pub(crate) fn advertisements_are_heard_again(ward: &mut Ward<'_>) {
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
        let again = ward::commands(finding);
        again.iter().for_each(|command| ward.mend(command));
        ward.note("forwarding-off", &again, began);
    }
    ward.all_is_well();
}

/// The prefix is a part of the uplink's subnet, and nobody routes it here.
#[track_caller]
pub(crate) fn the_prefix_is_answered_for(ward: &mut Ward<'_>) {
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
pub(crate) fn names_go_to_consul_again(ward: &mut Ward<'_>) {
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
