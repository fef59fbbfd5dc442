//! Issue 6, line 1: two hosts, three Consul servers, and nothing but IPv6 between them.
//!
//! ```text
//!   link 2001:db8:5::/64
//!     ├── ::1, ::2, ::3  consul servers
//!     ├── ::11 host ── v6podd ── 2001:db8:1:2:3::/80 ── ┌ container of v6t1 ┐
//!     │         └─ consul agent, DNS at port 53
//!     └── ::12 host ── v6podd ── 2001:db8:1:2:4::/80 ── ┌ container of v6t2 ┐
//!               └─ consul agent, DNS at port 53
//! ```
#![allow(clippy::expect_used, reason = "a test")]
#![forbid(unsafe_code)]

use std::net::Ipv6Addr;
use std::thread;
use std::time::{Duration, Instant};

use v6pod_tests::{
    Config, Consul, Container, Daemon, HostNs, Lan, Member, PATIENCE, User, eventually, require,
};

const SERVERS: [u8; 3] = [1, 2, 3];
/// The hosts' numbers on the link, and their ranges of containers' addresses, of one /64.
const HOSTS: [(u8, &str); 2] = [(11, "2001:db8:1:2:3::/80"), (12, "2001:db8:1:2:4::/80")];

/// How long the leader is cut off, and how long after it names may still be wrong.
const CUT: Duration = Duration::from_secs(30);
const RIGHT_AGAIN: Duration = Duration::from_secs(20);

/// One host. Dropped in this order.
struct Side {
    user: User,
    daemon: Daemon,
    consul: Consul,
    _host: HostNs,
}

impl Side {
    fn new(lan: &Lan, which: usize) -> Self {
        let (number, prefix) = HOSTS[which];
        let (other, others) = HOSTS[1 - which];
        let host = HostNs::new();
        lan.join(&host, number);
        host.ip(&format!("-6 route add {others} via {}", Lan::address(other))).ok();
        let consul = Consul::agent_of(&host, number, &SERVERS);
        // Containers of one host are reached by those of the other: by IPv6, on any port.
        let (keys, tables) = ("uplink = \"lan0\"\n".to_owned(), Config::OPEN.to_owned());
        let config = Config { prefix: prefix.to_owned(), consul: true, keys, tables };
        let daemon = Daemon::configured(&host, &config);
        let user = User::create(which as u8 + 1, &host);
        user.use_shim(&daemon.socket());
        Self { user, daemon, consul, _host: host }
    }

    /// A container that serves its own name, and resolves by its host's agent.
    fn serve(&self, which: usize, name: &str) -> Container<'_> {
        let dns = Lan::address(HOSTS[which].0).to_string();
        let script = format!(
            "mkdir -p /w && echo I am {name} > /w/index.html && exec httpd -f -p [::]:8080 -h /w"
        );
        self.user.start(name, &["--dns", &dns], &["sh", "-c", &script])
    }

    fn address_of(&self, name: &str) -> Ipv6Addr {
        // It is called so behind its start.
        eventually(PATIENCE, &format!("{name} is attached"), || {
            let all = self.daemon.attachments();
            all.iter().find(|a| a.name.as_deref() == Some(name)).map(|a| a.address)
        })
    }
}

fn is_answered(consul: &Consul, name: &str, wanted: &[Ipv6Addr], limit: Duration) {
    eventually(limit, &format!("{name} is {wanted:?}"), || {
        (consul.aaaa(name) == wanted).then_some(())
    });
}

/// From inside a container the page of another is fetched, by its name.
fn fetches(user: &User, from: &str, name: &str) {
    let url = format!("http://{name}.service.consul:8080/");
    eventually(PATIENCE, &format!("{from} fetches {url}"), || {
        // Not with a time-out: Debian's static busybox crashes at `wget -T`.
        let got = user.podman(&["exec", from, "wget", "-q", "-O", "-", &url]);
        (got.stdout.trim() == format!("I am {name}")).then_some(())
    });
}

#[test]
fn containers_of_two_hosts_find_each_other_whatever_becomes_of_a_consul_server() {
    let _machine = require!(Podman, Consul);
    let lan = Lan::new();
    let members: Vec<Member> = SERVERS.iter().map(|number| lan.member(*number)).collect();
    let mut servers: Vec<Consul> =
        members.iter().map(|m| Consul::one_of_three(m, &SERVERS)).collect();
    let [one, two] = [0, 1].map(|which| Side::new(&lan, which));
    let leader = || eventually(PATIENCE, "there is a leader", || one.consul.leader());
    leader();

    // Both ways, by name.
    let _web = one.serve(0, "web");
    let _db = two.serve(1, "db");
    let (web, db) = (one.address_of("web"), two.address_of("db"));
    for consul in [&one.consul, &two.consul] {
        is_answered(consul, "web", &[web], PATIENCE);
        is_answered(consul, "db", &[db], PATIENCE);
    }
    fetches(&one.user, "web", "db");
    fetches(&two.user, "db", "web");

    // One server is killed that does not lead: nothing changes.
    let leading = |leader: std::net::SocketAddr| {
        SERVERS.iter().position(|n| leader.ip() == Lan::address(*n)).expect("one of three")
    };
    let killed = (leading(leader()) + 1) % 3;
    servers[killed].kill9();
    assert_eq!((one.consul.aaaa("db"), two.consul.aaaa("web")), (vec![db], vec![web]));
    let _more = one.serve(0, "more");
    is_answered(&two.consul, "more", &[one.address_of("more")], PATIENCE);
    servers[killed].start_up();

    // The leader is cut off: no start waits, and names are right soon after.
    let cut = SERVERS[leading(leader())];
    lan.cut(cut);
    let since = Instant::now();
    let _begun = [one.serve(0, "begun"), two.serve(1, "begun-too")];
    two.user.podman(&["rm", "-f", "-t", "0", "db"]).ok();
    let started = since.elapsed();
    assert!(started < CUT, "starts have waited for Consul: {started:?}");
    eprintln!("    two starts and an end took {started:?} while the leader was cut off");
    thread::sleep(CUT.saturating_sub(since.elapsed()));
    lan.heal(cut);
    let healed = Instant::now();
    for consul in [&one.consul, &two.consul] {
        let left = || RIGHT_AGAIN.saturating_sub(healed.elapsed());
        is_answered(consul, "begun", &[one.address_of("begun")], left());
        is_answered(consul, "begun-too", &[two.address_of("begun-too")], left());
        is_answered(consul, "db", &[], left());
        is_answered(consul, "web", &[web], left());
    }
    eprintln!("    names were right {:?} after the link was back", healed.elapsed());
    fetches(&two.user, "begun-too", "web");
}
