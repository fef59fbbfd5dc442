//! Requests and answers.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};

use crate::wishes::{Egress, Findings, NameWish, Opening, OpeningList, OtherWishes};
use crate::{AttachmentId, ContainerId, LinkName, Mac, NetworkName, Uid, Wishes};

mod event;
mod status;

pub use event::{Event, Happening};
pub use status::{
    CapLimit, Capacity, Counts, Obstacle, PrefixOffer, PrefixView, RegistryView, Status,
    SwitchedOff,
};

const fn yes() -> bool {
    true
}

/// `POST /api/activate`. With a network namespace's descriptor on the request's first byte
/// (SCM_RIGHTS) the container is the one in that namespace and `id` is a claim; without, `user` and
/// `id` say which running container is meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Activate {
    /// The container. Only with a descriptor can it be left out: pasta's wrapper is told the namespace
    /// and no more, and the OCI hook says later, or has said, which container's it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ContainerId>,
    /// Whose container it is; only without a descriptor, which tells by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Uid>,
    /// The container's name as its engine knows it. A claim, like `id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The end of this connection means the end of the attachment.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lease: bool,
    /// False only describes: what the request says of the container is added to what is there. Where
    /// nothing is yet it is kept for a while, for whoever plugs, and the answer is "not found".
    #[serde(default = "yes")]
    pub plug: bool,
    /// An attachment that is there already is a conflict (CNI's ADD).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exclusive: bool,
    /// A number that the caller has drawn for this request, at random. An attachment that a request with
    /// this number has made for the same container is no conflict but its answer, which was lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u64>,
    /// The name of the interface inside; `eth0` unless it is taken, then `v6eth0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<LinkName>,
    /// The container's first process, in the daemon's process namespace, if it is known. Where no
    /// connection holds the attachment, its end is the attachment's. In the namespace of another container's
    /// attachment it makes the container a member of that one's pod, and its end takes the name away again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The container's annotations; a form cannot say them. Those called `v6pod` or `v6pod.…` mean
    /// something here, and one of these that is malformed is an error.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// What the container asks for otherwise, as v6pod-wishes found it. A form cannot say it.
    #[serde(default, skip_serializing_if = "Findings::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = BTreeMap<String, String>))]
    pub found: Findings,
    /// The engine's network for which it is made, to be found again by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkName>,
}

impl Activate {
    /// A request for this container, everything else as it is by default.
    pub fn new(id: ContainerId) -> Self {
        Self { id: Some(id), ..Self::unidentified() }
    }

    /// A request for a container of which only the network namespace is known.
    pub fn unidentified() -> Self {
        Self {
            id: None,
            user: None,
            name: None,
            lease: false,
            plug: true,
            exclusive: false,
            attempt: None,
            interface: None,
            pid: None,
            annotations: BTreeMap::new(),
            found: Findings::default(),
            network: None,
        }
    }
}

/// `POST /api/deactivate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Deactivate {
    /// The container.
    pub id: ContainerId,
    /// Whose container it is; the caller's unless said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Uid>,
    /// Somebody believes that the container has ended: what still has a lease or a living process
    /// stays. Podman runs the hooks of an end late, twice, or after the next start.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hint: bool,
}

/// The answer to [`Deactivate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Deactivated {
    /// Whether there was anything to take away.
    pub removed: bool,
}

/// `PATCH /api/attachments/{reference}`: what is open from now on, and the name, as long as the attachment
/// lasts. What a container asks for of it counts no more. Either `openings`, or `close` and `open`, of which
/// `close` comes first; all of it at once, or nothing. Saying what is so already is fine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// These and nothing else, such as `["tcp/80", "udp/5000-5010", "tcp/5432@2001:db8::/32"]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<String>>))]
    pub openings: Option<OpeningList>,
    /// These too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<String>>))]
    pub open: Option<OpeningList>,
    /// These ports no more, for these addresses or, without any, for all. A part of a range can be
    /// closed; a part of the addresses that something is open to cannot (409).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<String>>))]
    pub close: Option<OpeningList>,
    /// The name to be registered by, as `v6pod.name` has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub name: Option<NameWish>,
}

impl Change {
    /// Whether it says something of what is open.
    pub const fn is_of_openings(&self) -> bool {
        self.openings.is_some() || self.open.is_some() || self.close.is_some()
    }
}

/// Something that is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Opened {
    /// Ports, and to whom, such as `tcp/80` or `tcp/5000-5010@2001:db8::/32`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub opening: Opening,
    /// By what.
    pub by: OpenedBy,
}

/// Something that was asked for and is not open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Unopened {
    /// Ports, and to whom.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub opening: Opening,
    /// By what it was asked for.
    pub by: OpenedBy,
    /// Why not, in one sentence.
    pub why: String,
}

/// What something is open by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum OpenedBy {
    /// An annotation of the container's.
    Annotation,
    /// A label of its pod's.
    PodLabel,
    /// A label of its own.
    Label,
    /// A published port.
    Published,
    /// Its owner, while it ran.
    Owner,
    /// root or an operator, while it ran.
    Operator,
    /// An annotation or a label that its image bears, or may bear: nothing is ever open by it.
    Image,
}

impl std::fmt::Display for OpenedBy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Annotation => "annotation",
            Self::PodLabel => "pod's label",
            Self::Label => "label",
            Self::Published => "published port",
            Self::Owner => "owner",
            Self::Operator => "operator",
            Self::Image => "image",
        })
    }
}

/// What a container may reach over IPv6, and by whose word.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EgressView {
    /// `allow` for all that the host reaches, or `deny` and what is reached all the same.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub rule: Egress,
    /// Who says so.
    pub by: EgressBy,
}

/// Who says what a container may reach.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum EgressBy {
    /// The host's configuration, for who says nothing.
    #[default]
    Host,
    /// An annotation of the container's.
    Annotation,
    /// A label of its pod's.
    PodLabel,
    /// A label of its own.
    Label,
    /// An annotation or a label that its image bears, or may bear.
    Image,
}

impl std::fmt::Display for EgressBy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Host => "this host's default",
            Self::Annotation => "annotation",
            Self::PodLabel => "pod's label",
            Self::Label => "label",
            Self::Image => "image",
        })
    }
}

/// How packets reach a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// By an isolated port of the host's bridge.
    Bridge,
    /// By an interface of its own.
    Routed,
}

/// Where an attachment is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Address and record exist.
    Reserved,
    /// The port and its end in the container exist.
    Wired,
    /// The caller has his answer.
    Serving,
    /// The end of its lease was seen; it goes when the grace is over.
    Ending,
}

/// One container's place on the network, as a caller sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Attachment {
    /// The daemon's id of it.
    pub id: AttachmentId,
    /// The container; until somebody has said which it is, `id` twice.
    pub container: ContainerId,
    /// The container's name as its engine knows it.
    pub name: Option<String>,
    /// Whose it is.
    pub owner: Uid,
    /// Its address.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = "ipv6"))]
    pub address: Ipv6Addr,
    /// The address's prefix length inside the container: always 128.
    pub prefix_length: u8,
    /// Subnets that are routed to it, each address of which is its own, such as `2001:db8:1:2:3:4::/96`. While
    /// the prefix changes there are two.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subnets: Vec<String>,
    /// What the default route inside points to.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = "ipv6"))]
    pub gateway: Ipv6Addr,
    /// The interface inside.
    pub interface: LinkName,
    /// The host's end.
    pub port: LinkName,
    /// The Ethernet address of the interface inside.
    pub mac: Mac,
    /// How packets reach it.
    pub mode: Mode,
    /// Where it is in its life.
    pub state: State,
    /// The names it bears and what became of them.
    pub names: Vec<NameStatus>,
    /// The members of the pod whose attachment it is, whose names are further names of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<Member>,
    /// How Consul sees whether it is well. Empty with another registry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckStatus>,
    /// What the container asked for: its annotations.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = BTreeMap<String, String>))]
    pub wishes: Wishes,
    /// What it asked for otherwise, by where that comes from.
    #[serde(default, skip_serializing_if = "OtherWishes::is_empty")]
    pub found: OtherWishes,
    /// What is open. With `firewall.ingress = "allow"` everything is, whatever stands here.
    #[serde(default)]
    pub openings: Vec<Opened>,
    /// What was asked for and is not open.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unopened: Vec<Unopened>,
    /// What it may reach.
    #[serde(default)]
    pub egress: EgressView,
    /// Whether a connection holds it.
    pub lease: bool,
    /// Seconds since the epoch at which it was made.
    pub since: u64,
    /// The engine's network that it was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkName>,
    /// What has passed it. Told of one attachment that is asked for by itself, unless the kernel has not
    /// said; for many there are the metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
    /// Who is to be asked for names in the container, if anybody in particular.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolver: Option<Resolver>,
}

/// What an attachment has carried since it was made, as the container sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Traffic {
    /// Towards the container: what the firewall let through.
    pub received: Passed,
    /// From the container: what it sent, before the firewall decided.
    pub sent: Passed,
}

/// One direction of [`Traffic`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Passed {
    /// Packets. What the kernel hands over whole and cuts later, or never, is one.
    pub packets: u64,
    /// Their bytes, Ethernet headers of 14 included.
    pub bytes: u64,
    /// Packets that were lost between container and host: a queue was full, or the end that was to take
    /// them is down. What the firewall drops is not counted here.
    pub dropped: u64,
}

/// A further container in an attachment's network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Member {
    /// Which.
    pub container: ContainerId,
    /// Its name as its engine knows it, once known.
    pub name: Option<String>,
}

/// What became of a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NameStatus {
    /// The DNS label, as registered.
    pub name: String,
    /// What became of it.
    pub state: NameState,
    /// Why it is not the name that the container asked for, or not registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// A check that Consul makes of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CheckStatus {
    /// What is looked at, such as `http:8080/health`.
    pub check: String,
    /// Why it may never succeed, and what would help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// What became of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum NameState {
    /// The registry has it.
    Registered,
    /// On its way to the registry.
    Pending,
    /// Not registered, for the reason in the note.
    Refused,
}

/// Who answers a container what it asks for by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Resolver {
    /// Where, at port 53.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = "ipv6"))]
    pub address: Ipv6Addr,
    /// The zone that the names of this host's containers are in, if they are in any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
}

/// `GET /api/attachments`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AttachmentList {
    /// Those that the caller may see, by owner, then name, then id.
    pub attachments: Vec<Attachment>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> String {
        "0123456789abcdef".repeat(4)
    }

    #[test]
    fn a_minimal_request_plugs_and_holds_no_lease() {
        let request: Activate = serde_json::from_str(&format!(r#"{{"id":"{}"}}"#, id())).unwrap();
        assert!(request.plug && !request.lease && !request.exclusive);
    }

    #[test]
    fn an_unknown_field_is_named() {
        let error =
            serde_json::from_str::<Activate>(&format!(r#"{{"id":"{}","pulg":true}}"#, id()));
        assert!(error.unwrap_err().to_string().contains("pulg"));
    }
}
