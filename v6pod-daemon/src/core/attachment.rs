//! One container's place on the network.

use serde::{Deserialize, Serialize};
use v6pod_proto::wishes::{NameWish, OtherWishes};
use v6pod_proto::{AttachmentId, ContainerId, LinkName, NetworkName, State, Uid, Wishes};

use super::Port;
use super::name::Label;
use super::open::OpenPorts;
use super::rare::Rare;

/// What makes a network namespace that one and no other.
///
/// The inode alone is not enough: Linux gives the numbers of namespaces that are gone to new ones at
/// once. The cookie (SO_NETNS_COOKIE, Linux 5.14) is never given twice between two boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NamespaceId {
    /// The inode on nsfs.
    pub inode: u64,
    /// The cookie, where the kernel has one.
    pub cookie: Option<u64>,
}

impl NamespaceId {
    /// Whether both mean one namespace, given that the namespace that the first was taken from still
    /// exists. That it does is known of every attachment: its port would be gone otherwise.
    pub fn is(&self, other: &Self) -> bool {
        match (self.cookie, other.cookie) {
            (Some(a), Some(b)) => a == b,
            _ => self.inode == other.inode,
        }
    }
}

/// A process whose end means the end of the attachment: the lease's holder or the container's init.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Holder {
    /// Its process id in the host's pid namespace.
    pub pid: u32,
    /// When it was started, in clock ticks since boot (field 22 of `/proc/PID/stat`): tells it from a
    /// later process of the same id.
    pub start_time: u64,
}

/// Where an attachment is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Address and record exist; the kernel is being asked.
    Reserved,
    /// Port and namespace end exist.
    Wired,
    /// The caller has his answer.
    Serving,
    /// The end of this generation was seen; unless a new lease takes over, it goes after the grace.
    Ending,
    /// It is being taken away. Nobody is shown it any more.
    Releasing,
}

impl Phase {
    /// What a caller sees of it; `None` once it is on its way out.
    pub const fn shown(self) -> Option<State> {
        match self {
            Self::Reserved => Some(State::Reserved),
            Self::Wired => Some(State::Wired),
            Self::Serving => Some(State::Serving),
            Self::Ending => Some(State::Ending),
            Self::Releasing => None,
        }
    }
}

/// How many times a namespace was plugged: each lease has its own number, and the end of a lease
/// means nothing to an attachment that has gone on to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Generation(pub u64);

/// One container's place on the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The daemon's own id of it.
    pub id: AttachmentId,
    /// Whose it is.
    pub owner: Uid,
    /// The container, as its owner says; the id's stand-in until he has said it.
    pub container: ContainerId,
    /// The container's name, once known.
    pub name: Option<String>,
    /// The name that it bears in the registry. Remembered over a restart: who bears a name keeps it.
    pub label: Option<Label>,
    /// The names that its ports bear, as far as they are others.
    pub further: Vec<Label>,
    /// What the container asks for.
    pub wishes: Wishes,
    /// And by other means than annotations.
    pub found: Rare<OtherWishes>,
    /// What is open of it; its port has the elements of that.
    pub open: OpenPorts,
    /// The container's network namespace.
    pub namespace: NamespaceId,
    /// Its kernel objects.
    pub port: Port,
    /// The process that it ends with.
    pub holder: Option<Holder>,
    /// Whether a connection holds it.
    pub lease: bool,
    /// Seconds since the epoch at which it was made.
    pub since: u64,
    /// The engine's network that it was made for.
    pub network: Option<NetworkName>,
    /// The number of the request that made it, where the caller has drawn one.
    pub attempt: Option<u64>,
    /// Which plugging of the namespace this is.
    pub generation: Generation,
    /// Where it is in its life.
    pub phase: Phase,
    /// The port's index, once made.
    pub ifindex: Option<u32>,
}

impl Attachment {
    /// Whether it is known which container it is.
    pub fn is_identified(&self) -> bool {
        self.container != self.id.stand_in()
    }

    /// The name that it asks for, by an annotation before anything else.
    pub fn asked_name(&self) -> Option<&NameWish> {
        self.wishes.name.as_ref().or_else(|| self.found.name())
    }

    /// It does not get the address that it asks for: whoever asks for it again is not taken for served.
    pub fn forget_place(&mut self) {
        let found: &mut OtherWishes = &mut self.found;
        for wishes in [&mut self.wishes, &mut found.pod_labels, &mut found.labels] {
            wishes.address = None;
        }
    }

    /// Whether it bears this label, as far as is remembered.
    pub fn bears(&self, label: &Label) -> bool {
        self.label.as_ref() == Some(label) || self.further.contains(label)
    }
}

/// The name of the port of the attachment with this id. Nobody can guess it, so nobody can stand in
/// its way.
#[expect(clippy::expect_used, reason = "three letters and twelve hex digits are a link's name")]
pub fn port_name(id: &AttachmentId) -> LinkName {
    format!("v6p{}", id.short()).parse().expect("valid by construction")
}

#[cfg(test)]
pub(crate) mod tests {
    use v6pod_proto::Mode;

    use super::*;

    /// One that asks for nothing.
    pub(crate) fn attachment() -> Attachment {
        let id = AttachmentId::from_bits(1);
        let owner = Uid::new(1000).unwrap();
        Attachment {
            owner,
            container: "1".repeat(64).parse().unwrap(),
            name: None,
            label: None,
            further: Vec::new(),
            wishes: Wishes::default(),
            found: Rare::default(),
            open: OpenPorts::default(),
            namespace: NamespaceId { inode: 1, cookie: None },
            port: Port {
                name: port_name(&id),
                interface: "eth0".parse().unwrap(),
                mac: "02:00:00:00:00:01".parse().unwrap(),
                address: "2001:db8::2".parse().unwrap(),
                gateway: "2001:db8::1".parse().unwrap(),
                mtu: 1500,
                owner,
                open: OpenPorts::default().holes(),
                subnet: None,
                also: Vec::new(),
                alias: String::new(),
                mode: Mode::Bridge,
            },
            id,
            holder: None,
            lease: false,
            since: 0,
            network: None,
            attempt: None,
            generation: Generation::default(),
            phase: Phase::Serving,
            ifindex: None,
        }
    }

    #[test]
    fn a_cookie_decides_and_an_inode_only_without_one() {
        let id = |inode, cookie| NamespaceId { inode, cookie };
        assert!(id(1, Some(7)).is(&id(2, Some(7))));
        assert!(!id(1, Some(7)).is(&id(1, Some(8))));
        assert!(id(1, None).is(&id(1, Some(8))));
        assert!(!id(1, None).is(&id(2, None)));
    }
}
