//! What is there when the daemon dies: one that was answered long ago, and who is asking.

use std::fs::File;
use std::net::Ipv6Addr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use v6pod_proto::{Activate, Attachment, ContainerId, Mode};
use v6pod_tests::{
    Body, Config, Daemon, Footprint, HostNs, Invariants, OwnedNs, random_container_id,
};

/// The tenant: `daemon`, an account that every system has and that owns nothing here.
pub(super) const UID: u32 = 1;

/// One container: its namespace, its id, whether it asks for a subnet too, and the address that it was answered, if
/// it was.
pub(super) struct Subject {
    pub(super) namespace: OwnedNs,
    pub(super) id: ContainerId,
    pub(super) subnet: bool,
    pub(super) answered: Option<(Ipv6Addr, UnixStream)>,
}

impl Subject {
    pub(super) fn new() -> Self {
        let (namespace, id) = (OwnedNs::of_uid(UID, true), random_container_id());
        Self { namespace, id, subnet: false, answered: None }
    }

    /// Asks for an attachment; no answer is fine.
    pub(super) fn ask(&mut self, daemon: &Daemon, request: &Activate) {
        let body = serde_json::to_string(request).expect("a request is JSON");
        let network: File = self.namespace.network();
        let caller = daemon.as_user(UID);
        let called =
            caller.try_call("POST", "/api/activate", Body::Json(&body), Some(network.as_fd()));
        if let Some((response, stream)) = called.ok().filter(|(response, _)| response.status == 200)
        {
            self.answered = Some((response.ok::<Attachment>().address, stream));
        }
    }

    pub(super) fn attach(&mut self, daemon: &Daemon) {
        self.ask(daemon, &self.request());
    }

    pub(super) fn request(&self) -> Activate {
        let subnet = self.subnet.then(|| ("v6pod.subnet".to_owned(), "/96".to_owned()));
        let annotations = subnet.into_iter().collect();
        Activate { lease: true, annotations, ..Activate::new(self.id.clone()) }
    }

    pub(super) fn deactivate(&self, daemon: &Daemon) {
        let form = format!("user={UID}&id={}", self.id);
        let _ = daemon.as_user(UID).try_call("POST", "/api/deactivate", Body::Form(&form), None);
    }
}

/// A host with a daemon and one container that was answered long ago.
pub(super) struct Scene {
    pub(super) bystander: Subject,
    pub(super) before: Footprint,
    pub(super) daemon: Daemon,
    pub(super) host: HostNs,
    pub(super) subnets: bool,
}

impl Scene {
    pub(super) fn new(mode: Mode) -> Self {
        let keys = "ndp_proxy = true\n".to_owned();
        Self::on(&Config { keys, ..Config::default() }.with_mode(mode), false)
    }

    /// One whose containers ask for subnets too.
    pub(super) fn of_subnets(mode: Mode) -> Self {
        let tables = "[addresses]\nwished = [\"*\"]\n".to_owned();
        Self::on(&Config { tables, ..Config::default() }.with_mode(mode), true)
    }

    pub(super) fn on(config: &Config, subnets: bool) -> Self {
        let host = HostNs::new();
        let daemon = Daemon::configured(&host, config);
        let before = daemon.footprint();
        let mut bystander = Subject { subnet: subnets, ..Subject::new() };
        let named = Activate { name: Some("bystander".into()), ..bystander.request() };
        bystander.ask(&daemon, &Activate { lease: false, ..named });
        assert!(bystander.answered.is_some(), "{}", daemon.log());
        Self { bystander, before, daemon, host, subnets }
    }

    pub(super) fn subject(&self) -> Subject {
        Subject { subnet: self.subnets, ..Subject::new() }
    }

    pub(super) fn dies_at(&mut self, point: &str) -> bool {
        self.daemon.kill9();
        self.daemon.restart_to_die_at(point)
    }

    /// After the death: a restart, the invariants, everybody's end, and nothing is left.
    pub(super) fn recovers(mut self, subjects: Vec<Subject>, ended: bool) {
        self.daemon.has_died();
        self.daemon.restart();
        let living = subjects
            .iter()
            .chain([&self.bystander])
            .filter(|subject| !ended || std::ptr::eq(*subject, &self.bystander));
        let living: Vec<_> = living
            .filter_map(|subject| Some((&subject.namespace, subject.answered.as_ref()?.0)))
            .collect();
        Invariants::hold(&self.daemon, &living);
        let all = self.daemon.attachments();
        assert!(all.iter().all(|a| a.subnets.len() == usize::from(self.subnets)), "{all:?}");
        if ended {
            assert_eq!(self.daemon.attachments().len(), 1, "what was removed is back");
        }
        drop(subjects);
        drop(self.bystander);
        self.before.comes_back(&self.daemon);
    }
}
