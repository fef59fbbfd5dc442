//! Who is calling, as the kernel says.

use tokio::net::UnixStream;
use v6pod_proto::Uid;

/// The way a request came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// The unix socket: everything its caller may do.
    Unix {
        /// The process that connected.
        pid: u32,
    },
    /// Loopback TCP: what is the caller's own, and no more, be he root. A container with access to
    /// the host's loopback speaks here with its user's uid, and a root service that fetches URLs for
    /// others with root's.
    Tcp,
}

/// Who is calling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// His uid in the initial user namespace.
    pub uid: Uid,
    /// The way he came.
    pub via: Via,
}

impl Caller {
    /// The process that connected to the unix socket, from SO_PEERCRED: the kernel noted both at the
    /// time of the connection.
    pub(crate) fn of_unix(stream: &UnixStream) -> Option<Self> {
        let peer = stream.peer_cred().ok()?;
        Some(Self {
            uid: Uid::new(peer.uid())?,
            via: Via::Unix { pid: peer.pid()?.try_into().ok()? },
        })
    }

    /// Whether the caller may see and end what is others'.
    pub const fn sees_all(&self) -> bool {
        self.uid.is_root() && matches!(self.via, Via::Unix { .. })
    }

    /// Whether the caller may see and end what is this owner's.
    pub const fn may(&self, owner: Uid) -> bool {
        self.sees_all() || self.uid.as_raw() == owner.as_raw()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_only_himself_over_tcp() {
        let user = Uid::new(1000).unwrap();
        let root = |via| Caller { uid: Uid::ROOT, via };
        assert!(root(Via::Unix { pid: 1 }).may(user));
        assert!(!root(Via::Tcp).may(user) && root(Via::Tcp).may(Uid::ROOT));
        assert!(!Caller { uid: user, via: Via::Unix { pid: 1 } }.may(Uid::ROOT));
    }
}
