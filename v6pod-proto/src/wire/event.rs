//! What happens, as it is told.

use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};

use crate::{AttachmentId, ContainerId, Uid};

/// One event of `GET /api/events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Event {
    /// What happened.
    pub event: Happening,
    /// When, in milliseconds since the epoch.
    pub at: u64,
    /// Whose the attachment is. Without one it is about the host, and only who sees all is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Uid>,
    /// The attachment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<AttachmentId>,
    /// Its container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<ContainerId>,
    /// The name that it is about, or the container's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The attachment's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = "ipv6"))]
    pub address: Option<Ipv6Addr>,
    /// More about it, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Happening {
    /// A container has its address.
    Attached,
    /// It has it no more.
    Released,
    /// It has another address, in another prefix; without a container: another prefix is in force.
    Renumbered,
    /// The registry has a name of it.
    Registered,
    /// It does not get a name as it asked for it.
    Conflict,
    /// The registry had a name of it, and has it no more.
    Lost,
    /// The registry has it again; or something of the host's own was put back.
    Repaired,
}

impl Happening {
    /// The event's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Attached => "attached",
            Self::Released => "released",
            Self::Renumbered => "renumbered",
            Self::Registered => "registered",
            Self::Conflict => "conflict",
            Self::Lost => "lost",
            Self::Repaired => "repaired",
        }
    }
}
