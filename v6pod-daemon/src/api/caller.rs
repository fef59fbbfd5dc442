//! Who is calling, as the kernel says.

use std::os::fd::AsFd;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use v6pod_proto::Uid;

use crate::access::Standing;

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
    /// What the configuration lets him do.
    pub standing: Standing,
}

/// In whose place all those are counted who have no account: containers' users, whose uids are
/// subordinate ones. Nobody's own: the last uid there can be.
const STRANGERS: Uid = match Uid::new(u32::MAX - 1) {
    Some(uid) => uid,
    None => Uid::ROOT,
};

impl Caller {
    /// For whom he is counted where callers have shares.
    pub const fn counted_as(&self) -> Uid {
        if self.standing.account { self.uid } else { STRANGERS }
    }

    /// Whether the caller may see and end what is others'.
    pub const fn sees_all(&self) -> bool {
        self.standing.operates && matches!(self.via, Via::Unix { .. })
    }

    /// Whether the caller may see and end what is this owner's.
    pub const fn may(&self, owner: Uid) -> bool {
        self.sees_all() || self.uid.as_raw() == owner.as_raw()
    }
}

/// Uid and process of whoever connected to the unix socket, from SO_PEERCRED: the kernel noted both
/// at the time of the connection.
pub(crate) fn peer_of(stream: impl AsFd) -> Option<(Uid, Via)> {
    let peer = getsockopt(&stream, PeerCredentials).ok()?;
    // 0 for a process that this process namespace does not show.
    let pid = peer.pid().try_into().unwrap_or(0);
    Some((Uid::new(peer.uid())?, Via::Unix { pid }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: Uid = Uid::new(1000).unwrap();
    const PLAIN: Standing = Standing { operates: false, ..Standing::ROOT };
    const UNIX: Via = Via::Unix { pid: 1 };

    #[test]
    fn root_is_only_himself_over_tcp() {
        let root = |via| Caller { uid: Uid::ROOT, via, standing: Standing::ROOT };
        assert!(root(UNIX).may(USER));
        assert!(!root(Via::Tcp).may(USER) && root(Via::Tcp).may(Uid::ROOT));
        assert!(!Caller { uid: USER, via: UNIX, standing: PLAIN }.may(Uid::ROOT));
    }

    #[test]
    fn an_operator_is_one_on_the_unix_socket_alone() {
        let standing = Standing { operates: true, ..PLAIN };
        let operator = |via| Caller { uid: USER, via, standing };
        assert!(operator(UNIX).may(Uid::ROOT) && operator(UNIX).sees_all());
        assert!(!operator(Via::Tcp).may(Uid::ROOT) && !operator(Via::Tcp).sees_all());
    }

    #[test]
    fn attack_26_all_subordinate_uids_share_one_share() {
        let standing = Standing { known: true, ..Standing::UNKNOWN };
        let of = |uid| Caller { uid: Uid::new(uid).unwrap(), via: UNIX, standing }.counted_as();
        assert_eq!(of(100_000), of(165_535));
        assert_eq!(Caller { uid: USER, via: UNIX, standing: PLAIN }.counted_as(), USER);
    }
}
