//! What the installed daemon may: four capabilities and its system calls, and all works with them.

use v6pod_tests::{PATIENCE, Place as _, Suite, eventually, require};

use super::{comes_and_goes, installed, pings_from_outside, suite};

#[test]
fn the_daemon_is_nobody_with_four_capabilities() {
    let _machine = require!(WholeHost);
    let host = installed();
    let pid = host.property("v6podd.service", "MainPID");
    let status = host.sh(&format!("cat /proc/{pid}/status"));
    let uid = host.sh("id -u v6pod").ok().to_owned();
    assert_ne!(uid, "0");
    // Bits 2, 12, 19 and 21: DAC_READ_SEARCH, NET_ADMIN, SYS_PTRACE, SYS_ADMIN.
    let four = "0000000000281004";
    for (field, value) in [
        ("Uid", format!("{uid}\t{uid}\t{uid}\t{uid}")),
        ("CapPrm", four.to_owned()),
        ("CapEff", four.to_owned()),
        ("CapBnd", four.to_owned()),
        ("CapAmb", "0000000000000000".to_owned()),
        ("NoNewPrivs", "1".to_owned()),
        ("Seccomp", "2".to_owned()),
    ] {
        let line = format!("{field}:\t{value}\n");
        assert!(status.ok().contains(&line), "{line} is not in {status}");
    }
    host.sh(
        "systemd-analyze verify v6podd.service v6podd.socket v6podd-dns.socket 2>&1 | grep v6pod >&2 && exit 1 || :",
    )
    .ok();
    // The floor of these capabilities, with systemd 247, 252 and 257. The first knows no threshold.
    let exposure = match suite() {
        Suite::Bullseye => "systemd-analyze security v6podd.service | grep 'v6podd.service: 2.4 '",
        _ => "systemd-analyze security --offline=yes --threshold=24 v6podd.service",
    };
    host.sh(exposure).ok();
    // The machine may allow less than the unit asks for.
    let limit = host.sh(&format!("awk '/open files/ {{ print $4, $5 }}' /proc/{pid}/limits"));
    let (soft, hard) = limit.ok().split_once(' ').expect("two numbers");
    assert_eq!(soft, hard);
}

#[test]
fn all_that_needs_a_right_works_without_root() {
    let _machine = require!(WholeHost);
    let host = installed();
    let user = host.log_in("anna");
    let before = host.footprint();
    // By id, in files that are his alone; the namespace is entered, its sysctls are written.
    let id = user.sleeper("late", &["--network", "none"]);
    let (uid, at) = (user.uid(), "http://localhost:6781/api");
    let form = format!("curl -sS --fail -d 'user={uid}&id={id}' {at}");
    user.run("sh", &["-c", &format!("{form}/activate")]).ok();
    let attachment = user.attachment(&id);
    pings_from_outside(&host, attachment.address);
    let pid = user.pid("late");
    let accept_ra = format!("nsenter --net=/proc/{pid}/ns/net cat /proc/sys/net/ipv6/conf/eth0");
    assert_eq!(host.sh(&format!("{accept_ra}/accept_ra")).ok(), "0");
    user.run("sh", &["-c", &format!("{form}/deactivate")]).ok();
    eventually(PATIENCE, "the end", || host.attachments().is_empty().then_some(()));
    user.remove(&["late"]);
    // With a map of its own, after `crun create`.
    let id = user.sleeper("mapped", &["--userns=keep-id"]);
    pings_from_outside(&host, user.attachment(&id).address);
    user.remove(&["mapped"]);
    before.comes_back(&host);
    let journal = host.journal("v6podd.service");
    assert!(!journal.contains("ERROR") && !journal.contains("ermission denied"), "{journal}");
}

/// As docs/known-issues.md has it for hosts with thousands of containers.
#[test]
fn with_three_more_system_calls_the_daemon_has_a_procfs_of_its_own() {
    let _machine = require!(WholeHost);
    let host = installed();
    let user = host.log_in("anna");
    // What is mounted nowhere is a root to whoever asks for its path.
    let own = || {
        let pid = host.property("v6podd.service", "MainPID");
        host.sh(&format!("find /proc/{pid}/fd -lname / | wc -l")).ok().to_owned()
    };
    comes_and_goes(&user);
    assert_eq!(own(), "0");
    host.sh("mkdir -p /etc/systemd/system/v6podd.service.d").ok();
    let more = "[Service]\nSystemCallFilter=fsopen fsconfig fsmount\n";
    host.write("/etc/systemd/system/v6podd.service.d/procfs.conf", more);
    host.systemctl("daemon-reload").ok();
    host.systemctl("restart v6podd.service").ok();
    comes_and_goes(&user);
    assert_ne!(own(), "0");
    let journal = host.journal("v6podd.service");
    assert!(!journal.contains("ERROR") && !journal.contains("ermission denied"), "{journal}");
}
