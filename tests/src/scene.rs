//! An attacker and his victim.

use std::os::fd::{AsFd, BorrowedFd};

use v6pod_proto::{Activate, Attachment, ContainerId, NameState};

use crate::{
    Body, Config, Footprint, HostNs, OwnedNs, PATIENCE, Response, Stage, User, eventually,
    random_container_id,
};

/// Two users, of whom the second has a namespace with an attachment.
#[derive(Debug)]
pub struct Scene {
    /// The host, the daemon and both users.
    pub stage: Stage,
    /// The victim's namespace.
    pub victims: OwnedNs,
    /// Its attachment, with a name.
    pub attachment: Attachment,
    /// What there was with it, before anything else.
    pub footprint: Footprint,
}

impl Default for Scene {
    fn default() -> Self {
        Self::new()
    }
}

impl Scene {
    /// With the daemon's defaults.
    #[track_caller]
    pub fn new() -> Self {
        Self::configured(&Config::default())
    }

    /// With this configuration.
    #[track_caller]
    pub fn configured(config: &Config) -> Self {
        let stage = Stage::on(HostNs::new(), config, 2);
        let victims = OwnedNs::new(&stage.users[1]);
        let caller = stage.daemon.as_user(victims.uid());
        let request = Activate { name: Some("db".into()), ..Activate::new(random_container_id()) };
        let (outcome, _) = caller.activate(&request, victims.network().as_fd());
        outcome.unwrap_or_else(|refused| panic!("{refused}"));
        // Its name comes behind the answer.
        let attachment = eventually(PATIENCE, "the victim's name is registered", || {
            let a = stage.daemon.the_attachment();
            let registered = a.names.iter().any(|name| name.state == NameState::Registered);
            registered.then_some(a)
        });
        let footprint = stage.daemon.footprint();
        Self { stage, victims, attachment, footprint }
    }

    /// The first user.
    pub fn attacker(&self) -> &User {
        &self.stage.users[0]
    }

    /// The second.
    pub fn victim(&self) -> &User {
        &self.stage.users[1]
    }

    /// Activates this descriptor as this uid.
    pub fn send(&self, uid: u32, fd: BorrowedFd<'_>) -> Result<Attachment, Response> {
        let request = Activate::new(random_container_id());
        self.stage.daemon.as_user(uid).activate(&request, fd).0
    }

    /// Activates by id as this uid.
    pub fn by_id(&self, asker: u32, owner: u32, id: &ContainerId) -> Response {
        let form = format!("user={owner}&id={id}");
        self.stage.daemon.as_user(asker).post("/api/activate", Body::Form(&form))
    }

    /// Activates one of the attacker's own containers by id, as himself.
    pub fn attacker_by_id(&self, id: &ContainerId) -> Response {
        let uid = self.attacker().uid();
        self.by_id(uid, uid, id)
    }

    /// Whether nothing of the victim's has changed; waits for what is on its way.
    #[track_caller]
    pub fn is_unchanged(&self) {
        self.footprint.comes_back(&self.stage.daemon);
        assert_eq!(self.stage.daemon.attachments(), std::slice::from_ref(&self.attachment));
        assert_eq!(self.victims.addresses(), [self.attachment.address]);
    }
}
