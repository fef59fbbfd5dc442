//! The host that all of this happens on, and talk between its namespaces.

use std::fs::File;
use std::net::Ipv6Addr;
use std::thread;

use v6pod_proto::Mode;
use v6pod_tests::{Attached, Config, Daemon, Flow, HostNs, OUTSIDE_V6, Tap, User, run};

pub(crate) const MODES: [Mode; 2] = [Mode::Bridge, Mode::Routed];

pub(crate) fn outside() -> Ipv6Addr {
    OUTSIDE_V6.parse().expect("an address")
}

/// A host with a daemon and two users; containers come as they are asked for.
pub(crate) struct Place {
    pub(crate) users: [User; 2],
    pub(crate) daemon: Daemon,
    pub(crate) host: HostNs,
}

impl Place {
    #[track_caller]
    pub(crate) fn with(mode: Mode, tables: &str) -> Self {
        eprintln!("    {mode:?} {}", tables.replace('\n', " "));
        let host = HostNs::new();
        let daemon = Daemon::configured(&host, &config(mode, tables));
        let users = [1, 2].map(|number| User::account(number, &host));
        // Host and outside know each other: else a first packet waits a second for its retransmission.
        run(host.command("ping").args(["-c", "1", "-W", "10", OUTSIDE_V6])).ok();
        Self { users, daemon, host }
    }

    /// Restarts the daemon with another configuration.
    #[track_caller]
    pub(crate) fn again(&mut self, mode: Mode, tables: &str) {
        self.daemon.stop();
        self.daemon.reconfigure(&config(mode, tables));
        self.daemon.restart();
    }

    /// A container of the first user that says this.
    #[track_caller]
    pub(crate) fn container(&self, annotations: &[(&str, &str)]) -> Attached {
        Attached::asking(&self.daemon, &self.users[0], annotations)
    }

    #[track_caller]
    pub(crate) fn outside(&self) -> File {
        File::open(self.host.outside_path()).expect("the outside")
    }

    #[track_caller]
    pub(crate) fn host(&self) -> File {
        File::open(self.host.path()).expect("the host")
    }

    #[track_caller]
    pub(crate) fn outside_tap(&self) -> Tap {
        Tap::open(&self.outside(), "out0")
    }

    #[track_caller]
    pub(crate) fn host_tap(&self, interface: &str) -> Tap {
        Tap::open(&self.host(), interface)
    }

    /// The Ethernet address that every container sends to.
    #[track_caller]
    pub(crate) fn gateway_mac(&self) -> [u8; 6] {
        self.host_tap(&self.daemon.bridge()).mac()
    }

    /// The host's own address in the containers' range.
    pub(crate) fn service(&self) -> Ipv6Addr {
        "2001:db8:1:2:3::1".parse().expect("an address")
    }

    /// A number that conntrack says of this host.
    #[track_caller]
    pub(crate) fn number(&self, which: &str) -> u32 {
        let file = format!("/proc/sys/net/netfilter/{which}");
        run(self.host.command("cat").arg(file)).ok().parse().expect("a number")
    }

    /// Of how many containers a flow has just been refused, that they began, or were offered.
    #[track_caller]
    pub(crate) fn at_limit(&self, which: &str) -> usize {
        let series = format!("v6pod_attachments_at_flow_limit{{flows=\"{which}\"}} ");
        let response = self.daemon.root().get("/metrics");
        let text = String::from_utf8(response.body).expect("text");
        let value = text.lines().find_map(|line| line.strip_prefix(&series));
        value.unwrap_or_else(|| panic!("{series}: {text}")).parse().expect("a number")
    }

    /// What conntrack remembers of an address.
    #[track_caller]
    pub(crate) fn flows(&self, address: Ipv6Addr) -> usize {
        let digits: Vec<_> = address.segments().iter().map(|s| format!("{s:04x}")).collect();
        let table = run(self.host.command("cat").arg("/proc/net/nf_conntrack"));
        table.ok().lines().filter(|line| line.contains(&digits.join(":"))).count()
    }
}

fn config(mode: Mode, tables: &str) -> Config {
    Config { tables: tables.to_owned(), ..Config::default() }.with_mode(mode)
}

/// Which of these are reached from that namespace, TCP and UDP. All are tried at once: what is dropped says
/// nothing.
#[track_caller]
pub(crate) fn reached(from: &File, to: &[(Ipv6Addr, u16)]) -> Vec<String> {
    let name = |word: &str, (address, port): (Ipv6Addr, u16)| format!("{word}/{port} {address}");
    thread::scope(|scope| {
        let tries = to.iter().map(|&to| {
            let tcp = scope.spawn(move || Flow::tcp(from, to).map(|_| name("tcp", to)));
            let udp = scope.spawn(move || Flow::udp(from, to).map(|_| name("udp", to)));
            [tcp, udp]
        });
        let tries: Vec<_> = tries.flatten().collect();
        tries.into_iter().filter_map(|attempt| attempt.join().expect("an attempt")).collect()
    })
}

pub(crate) fn pings(from: &Attached, to: Ipv6Addr) -> bool {
    from.namespace
        .run("ping", &["-c", "2", "-i", "0.2", "-W", "1", &to.to_string()])
        .status
        .success()
}

#[track_caller]
pub(crate) fn tcp(from: &File, to: (Ipv6Addr, u16)) -> Flow {
    Flow::tcp(from, to).expect("a connection")
}

#[track_caller]
pub(crate) fn udp(from: &File, to: (Ipv6Addr, u16)) -> Flow {
    Flow::udp(from, to).expect("an answer")
}
