//! One that is asked, and all those who ask it.

use std::fs::File;
use std::net::Ipv6Addr;
use std::path::PathBuf;

use v6pod_proto::Mode;
use v6pod_tests::{Attached, Config, Daemon, HostNs, OUTSIDE_V6, Server, User};

use crate::OPEN;
use crate::far::Far;
use crate::probe::Who;

/// Where those who are asked back serve, one port for each of them.
pub(crate) const BACK: u16 = 7000;
/// What is opened of containers that are asked back.
const BACK_OPEN: (&str, &str) = ("v6pod.ingress", "tcp/7000-7010 udp/7000-7010");
/// What the one that is asked says besides what is open, and what its owner's other one does.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Asks {
    pub(crate) victim: Option<(&'static str, &'static str)>,
    pub(crate) same: Option<(&'static str, &'static str)>,
}

/// One row.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) who: Who,
    /// The address that is asked back.
    pub(crate) address: Ipv6Addr,
    /// As `explain` is told of it, and whose process it is, if that matters.
    pub(crate) source: String,
    pub(crate) uid: Option<u32>,
}

/// Dropped in this order.
pub(crate) struct Scene {
    _server: Server,
    pub(crate) victim: Attached,
    /// The owner's other one, and another's.
    siblings: [Attached; 2],
    elsewhere: Attached,
    _far: Far,
    /// Another, and the owner of the one that is asked.
    pub(crate) users: [User; 2],
    pub(crate) daemon: Daemon,
    pub(crate) host: HostNs,
}

impl Scene {
    #[track_caller]
    pub(crate) fn with(mode: Mode, tables: &str, asks: &Asks) -> Self {
        let host = HostNs::new();
        let config = Config { tables: tables.to_owned(), ..Config::default() }.with_mode(mode);
        let daemon = Daemon::configured(&host, &config);
        let users = [1, 2].map(|number| User::account(number, &host));
        let [other, owner] = &users;
        let far = Far::beside(&host, mode);
        let with = |first, more: Option<_>| [first].into_iter().chain(more).collect::<Vec<_>>();
        let victim = Attached::asking(&daemon, owner, &with(OPEN, asks.victim));
        let siblings = [
            Attached::asking(&daemon, owner, &with(BACK_OPEN, asks.same)),
            Attached::asking(&daemon, other, &[BACK_OPEN]),
        ];
        let elsewhere = Attached::asking(&far.daemon, other, &[BACK_OPEN]);
        assert_eq!(victim.attachment.mode, mode);
        let _server = Server::start(&file(&network(&victim)), &[80, 81]);
        Self { _server, victim, siblings, elsewhere, _far: far, users, daemon, host }
    }

    pub(crate) fn rows(&self) -> Vec<Row> {
        let Self { host, users: [other, owner], siblings: [same, others], elsewhere, .. } = self;
        let address = |text: &str| text.parse().expect("an address");
        let on_host = |name, uid| Row {
            name,
            who: Who { network: host.path(), uid },
            address: address("2001:db8:1:2:3::1"),
            source: "host".to_owned(),
            uid: Some(uid),
        };
        let container = |name, attached: &Attached| Row {
            name,
            who: Who { network: network(attached), uid: 0 },
            address: attached.address(),
            source: attached.address().to_string(),
            uid: None,
        };
        let outside = Row {
            name: "outside host",
            who: Who { network: host.outside_path(), uid: 0 },
            address: address(OUTSIDE_V6),
            source: OUTSIDE_V6.to_owned(),
            uid: None,
        };
        vec![
            outside,
            on_host("host's root", 0),
            on_host("owner's host process", owner.uid()),
            on_host("another user's host process", other.uid()),
            container("same owner's container", same),
            container("other owner's container", others),
            container("container on another host", elsewhere),
        ]
    }
}

/// Its network namespace.
pub(crate) fn network(attached: &Attached) -> PathBuf {
    format!("/proc/{}/ns/net", attached.namespace.pid()).into()
}

#[track_caller]
fn file(path: &PathBuf) -> File {
    File::open(path).expect("a network namespace")
}
