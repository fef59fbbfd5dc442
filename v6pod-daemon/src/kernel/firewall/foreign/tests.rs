//! With the rules that ufw 0.36.2 and firewalld 1.3.3 make of their defaults, as `ip6tables-save` and
//! `nft list ruleset` print them (Debian 12), and with what following the advice makes of them.

use super::*;
use crate::core::foreign::obstacles;
use crate::core::ruleset::{Ingress, Ruleset};
use crate::kernel::firewall::nft;
use crate::kernel::testing::{in_netns, policy, sh, skipped, try_sh};

const PREFIX: &str = "2001:db8:1:2:3::/80";

/// What is found now: program, chain, and how many commands would mend it.
fn found() -> Vec<(String, String, usize)> {
    let all = look().into_iter().map(|o| (o.program, o.chain, o.advice.len()));
    all.collect()
}

fn look() -> Vec<v6pod_proto::Obstacle> {
    let policy = policy(Ingress::Deny);
    let ours = Ours { net: policy.prefix.net(), bridge: policy.links.bridge.to_string() };
    let mut socket = RulesSocket::open().unwrap();
    obstacles(&socket.foreign(&policy.links, &ours).unwrap(), policy.prefix, None)
}

fn of(program: &str, chain: &str, commands: usize) -> (String, String, usize) {
    (program.to_owned(), chain.to_owned(), commands)
}

#[test]
fn our_own_tables_and_those_of_another_instance_are_in_nobodys_way() {
    in_netns(|| {
        nft::load(&Ruleset::of(&policy(Ingress::Deny), &[])).unwrap();
        nft::load(include_str!("../../../core/golden/other.nft")).unwrap();
        assert_eq!(found(), []);
    });
}

#[test]
fn ufw_is_named_until_it_lets_containers_through() {
    in_netns(|| {
        if !try_sh("command -v ip6tables-restore").0 {
            return skipped("needs iptables");
        }
        let rules =
            concat!(env!("CARGO_MANIFEST_DIR"), "/src/kernel/firewall/foreign/ufw.ip6tables");
        sh(&format!("ip6tables-restore {rules}"));
        assert_eq!(found(), [of("ufw", "FORWARD", 2)]);
        // As `ufw route allow` puts them.
        for (end, left) in [("-s", 1), ("-d", 0)] {
            sh(&format!("ip6tables -A ufw6-user-forward {end} {PREFIX} -j ACCEPT"));
            assert_eq!(look().iter().map(|o| o.advice.len()).sum::<usize>(), left);
        }
        assert_eq!(found(), []);
    });
}

#[test]
fn docker_is_named_until_its_users_chain_lets_containers_through() {
    in_netns(|| {
        if !try_sh("command -v ip6tables").0 {
            return skipped("needs iptables");
        }
        sh("ip6tables -N DOCKER-USER && ip6tables -A DOCKER-USER -j RETURN");
        sh("ip6tables -P FORWARD DROP && ip6tables -A FORWARD -j DOCKER-USER");
        assert_eq!(found(), [of("docker", "FORWARD", 2)]);
        look()[0].advice.iter().for_each(|command| drop(sh(command)));
        assert_eq!(found(), []);
        // Without docker, and with a rule at the end in the place of the policy.
        sh("ip6tables -P FORWARD ACCEPT && ip6tables -F && ip6tables -X");
        sh("ip6tables -A FORWARD -p tcp -j REJECT");
        assert_eq!(found(), []);
        sh("ip6tables -A FORWARD -m comment --comment end -j REJECT");
        assert_eq!(found(), [of("ip6tables", "FORWARD", 2)]);
        look()[0].advice.iter().for_each(|command| drop(sh(command)));
        assert_eq!(found(), []);
        sh("ip6tables -F && ip6tables -P INPUT DROP && ip6tables -P OUTPUT DROP");
        assert_eq!(found(), [of("ip6tables", "INPUT", 1), of("ip6tables", "OUTPUT", 1)]);
        look().iter().flat_map(|o| &o.advice).for_each(|command| drop(sh(command)));
        assert_eq!(found(), []);
    });
}

#[test]
fn firewalld_is_named_until_a_policy_lets_containers_through() {
    in_netns(|| {
        nft::load(include_str!("firewalld.nft")).unwrap();
        assert_eq!(found(), [of("firewalld", "filter_FORWARD", 11)]);
        // As its policies put them: a zone alone, which forwards nothing, is not enough.
        let rule = "nft add rule inet firewalld";
        sh(&format!("{rule} nat_POSTROUTING_ZONES ip6 daddr {PREFIX} goto nat_POST_public"));
        sh(&format!("{rule} filter_FORWARD_ZONES ip6 saddr {PREFIX} goto filter_FWD_public"));
        assert_eq!(found().len(), 1);
        sh(&format!("{rule} filter_FORWARD_POLICIES_pre ip6 daddr {PREFIX} accept"));
        assert_eq!(found(), []);
    });
}

#[test]
fn every_command_for_nft_is_taken_and_ends_what_it_was_for() {
    in_netns(|| {
        for (family, hook, priority) in [
            ("inet", "forward", "filter"),
            ("ip6", "forward", "10"),
            ("inet", "output", "filter"),
            ("inet", "input", "filter"),
            ("inet", "prerouting", "raw"),
            ("ip6", "postrouting", "srcnat"),
            ("bridge", "prerouting", "0"),
            ("bridge", "input", "0"),
            ("bridge", "postrouting", "0"),
            ("bridge", "output", "0"),
        ] {
            for refuses in ["policy drop;", "policy accept; counter drop;"] {
                sh(&format!(
                    "nft 'table {family} mine {{ chain it {{ type filter hook {hook} \
                     priority {priority}; {refuses} }}; }}'"
                ));
                let [obstacle] = &look()[..] else { panic!("{family} {hook}: {:?}", found()) };
                assert_eq!((&*obstacle.hook, &*obstacle.program), (hook, "nft"));
                obstacle.advice.iter().for_each(|command| drop(sh(command)));
                assert_eq!(found(), [], "{family} {hook}");
                sh(&format!("nft delete table {family} mine"));
            }
        }
    });
}

#[test]
fn what_does_not_refuse_us_is_not_named() {
    in_netns(|| {
        for harmless in [
            // No IPv6, or nothing that stops.
            "table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }",
            "table inet x { chain f { type filter hook forward priority 0; policy accept; \
             ip6 saddr 2001:db8:9::/48 drop; iifname \"x\" reject; }; }",
            "table bridge x { chain f { type filter hook forward priority 0; policy drop; }; }",
            // Containers are let pass by their bridge, a network around theirs, or beginnings of names.
            "table inet x { chain f { type filter hook forward priority 0; policy drop; \
             iifname \"v6k0\" accept; oifname \"v6k0\" accept; }; }",
            "table inet x { chain f { type filter hook forward priority 0; policy drop; \
             ip6 saddr 2001:db8::/32 accept; oifname \"v6*\" accept; }; }",
            // Neighbour discovery passes, among others.
            "table inet x { chain i { type filter hook input priority 0; policy drop; \
             meta l4proto { icmp, ipv6-icmp } accept; }; }",
            "table inet x { chain i { type filter hook input priority 0; policy drop; jump j; }; \
             chain j { icmpv6 type { nd-neighbor-solicit, echo-request } accept; }; }",
        ] {
            sh(&format!("nft '{harmless}'"));
            assert_eq!(found(), [], "{harmless}");
            sh("nft flush ruleset");
        }
    });
}

#[test]
fn a_rule_that_refuses_containers_lets_nothing_pass() {
    in_netns(|| {
        sh("nft 'table inet x { chain f { type filter hook forward priority 0; policy drop; \
            ip6 saddr 2001:db8:1:2:3::/80 drop; ip6 daddr 2001:db8:1:2:3::/80 reject; \
            iifname != \"v6k0\" accept; oifname \"v6k01\" accept; }; }'");
        assert_eq!(found(), [of("nft", "f", 2)]);
    });
}

#[test]
fn bytes_that_make_no_sense_are_nothing() {
    let ours = Ours { net: PREFIX.parse().unwrap(), bridge: "v6k0".into() };
    let whole: Vec<u8> = (0..96).map(|i| if i % 8 == 0 { 8 } else { i % 5 }).collect();
    for end in 0..whole.len() {
        let mut chain = Chain::default();
        note(&mut chain, &whole[..end], &ours);
        assert_eq!((chain.from_containers, chain.to_containers), (false, false));
        let _ = base(&whole[..end]);
    }
}

#[test]
fn tables_of_the_old_kind_are_seen_by_name() {
    in_netns(|| {
        assert_eq!(legacy_tables().unwrap(), "");
        if !try_sh("ip6tables-legacy -t filter -L -n").0 {
            return skipped("needs ip6tables-legacy, and a kernel that has its tables");
        }
        assert_eq!(legacy_tables().unwrap(), "filter\n");
    });
}
