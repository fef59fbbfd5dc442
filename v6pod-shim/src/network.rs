//! Attachments that are made for a container engine's network: what the plugins of CNI and netavark
//! have in common.
//!
//! They are made without a lease, and end when the engine says so, or with their namespace. Guarantee:
//! nothing ends here but what the same caller has, and what the plugin takes for its own.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::path::Path;

use serde::Deserialize;
use v6pod_proto::{Activate, Attachment, ContainerId, Deactivate, LinkName, NetworkName};

use crate::daemon::{self, Deadline, Failure};
use crate::identity;

/// The most that is read of what an engine says on stdin, in bytes.
const INPUT_LIMIT: u64 = 4 << 20;
/// The largest list of attachments, in bytes: some 20,000 of them.
const LIST_LIMIT: usize = 16 << 20;

/// A container's place on a network, as the engine knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plug {
    /// The network.
    pub(crate) network: NetworkName,
    /// The container.
    pub(crate) container: ContainerId,
    /// The interface inside.
    pub(crate) interface: LinkName,
}

impl Plug {
    /// That of an attachment; none if it was made for no network.
    pub(crate) fn of(attachment: &Attachment) -> Option<Self> {
        let (container, interface) = (attachment.container.clone(), attachment.interface.clone());
        Some(Self { network: attachment.network.clone()?, container, interface })
    }

    /// Whether an attachment is the one that was made for just this.
    pub(crate) fn is_of(&self, attachment: &Attachment) -> bool {
        Self::of(attachment).as_ref() == Some(self)
    }

    /// The request for its attachment.
    pub(crate) fn request(&self) -> Activate {
        Activate {
            network: Some(self.network.clone()),
            interface: Some(self.interface.clone()),
            ..Activate::new(self.container.clone())
        }
    }

    /// Ends its attachment, if there is one that is `its`.
    ///
    /// With the namespace gone there is nothing left to be done, daemon or no daemon: the kernel has
    /// taken the port with it, and tells the daemon or shows it at its next start.
    pub(crate) fn end(
        &self,
        socket: &Path,
        netns: Option<&Path>,
        its: impl Fn(&Attachment) -> bool,
    ) -> Result<(), Failure> {
        let gone = netns.is_none_or(|path| !path.exists());
        let listed = match list(socket) {
            Err(Failure::Absent | Failure::Busy | Failure::Late | Failure::Ended) if gone => {
                return Ok(());
            }
            listed => listed?,
        };
        if listed.iter().any(its) { self.deactivate(socket) } else { Ok(()) }
    }

    /// Ends its attachment, which is there.
    pub(crate) fn deactivate(&self, socket: &Path) -> Result<(), Failure> {
        let request = Deactivate { id: self.container.clone(), user: None, hint: false };
        daemon::deactivate(socket, &request, Deadline::start())
    }
}

/// Has a container attached; the attachment, or that which was there.
pub(crate) fn activate(
    socket: &Path,
    request: &Activate,
    netns: &File,
) -> Result<Attachment, Failure> {
    let (_connection, body) = daemon::activate(socket, request, netns.as_fd(), Deadline::start())?;
    serde_json::from_slice(&body).map_err(|_| Failure::Garbled("no attachment"))
}

#[derive(Deserialize)]
struct List {
    attachments: Vec<Attachment>,
}

/// What the caller has. An operator sees more than that, which is none of an engine's business.
pub(crate) fn list(socket: &Path) -> Result<Vec<Attachment>, Failure> {
    let what = format!("GET /api/attachments?owner={}", identity::outer_uid());
    let (_connection, body) =
        daemon::ask(socket, &what, None, None, LIST_LIMIT, Deadline::start())?;
    let list: Result<List, _> = serde_json::from_slice(&body);
    list.map(|list| list.attachments).map_err(|_| Failure::Garbled("no list of attachments"))
}

/// Reads stdin to its end; none if it is longer than anything that an engine says.
pub(crate) fn input() -> io::Result<Option<Vec<u8>>> {
    let mut text = Vec::new();
    io::stdin().take(INPUT_LIMIT + 1).read_to_end(&mut text)?;
    Ok((text.len() as u64 <= INPUT_LIMIT).then_some(text))
}
