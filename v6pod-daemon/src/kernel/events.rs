//! What the kernel tells unasked: that a port is gone, that the default route has changed, that a range was
//! delegated to this host.
//!
//! Guarantees: a port's end is told once; when the kernel could not deliver everything, that is told
//! too ([`Event::Overrun`]), and whoever reads must look for himself ([`observe`](super::observe)).

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use tokio::io::unix::AsyncFd;

use super::error::Error;
use super::netlink::next_message;
use super::view::{Link, Route};
use super::{delegations, host, sys};
use crate::core::links::Links;

/// Room for some ten thousand events: making and deleting one port brings about twenty.
const BACKLOG: usize = 16 * 1024 * 1024;

/// Something happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A link of the ports' group is gone: its container's namespace has ended, or somebody deleted it.
    PortGone {
        /// The number that it had.
        ifindex: u32,
    },
    /// The bridge is gone.
    BridgeGone,
    /// An IPv6 default route came, went or changed.
    DefaultRouteChanged,
    /// A range was delegated to this host, or is no more.
    DelegationsChanged,
    /// The route is gone by which the rest of a prefix of ours is unreachable.
    RangeGone,
    /// Events were lost.
    Overrun,
}

/// The stream of events of one instance.
#[derive(Debug)]
pub struct Events {
    socket: AsyncFd<OwnedFd>,
    buffer: Box<[u8]>,
    pending: VecDeque<Event>,
    overrun: bool,
    links: Links,
}

impl Events {
    /// Begins to listen, in the calling thread's namespace. Belongs into a tokio runtime.
    pub fn listen(links: &Links) -> Result<Self, Error> {
        Self::listen_with(links, BACKLOG)
    }

    fn listen_with(links: &Links, backlog: usize) -> Result<Self, Error> {
        let open = || {
            let mut socket = netlink_sys::Socket::new(netlink_sys::protocols::NETLINK_ROUTE)?;
            // Beyond the system's limit, by CAP_NET_ADMIN.
            setsockopt(&socket, sockopt::RcvBufForce, &backlog)?;
            socket.set_non_blocking(true)?;
            socket.bind(&netlink_sys::SocketAddr::new(0, 0))?;
            for group in [libc::RTNLGRP_LINK, libc::RTNLGRP_IPV6_ROUTE] {
                socket.add_membership(group)?;
            }
            sys::watch(socket.as_fd().try_clone_to_owned()?)
        };
        let socket = open().map_err(|e: io::Error| Error::io("listen to the kernel", e))?;
        let buffer = vec![0; 64 * 1024].into();
        Ok(Self { socket, buffer, pending: VecDeque::new(), overrun: false, links: links.clone() })
    }

    /// The next event. Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Result<Event, Error> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Ok(event);
            }
            let failed = |error| Error::io("listen to the kernel", error);
            let mut ready = self.socket.readable().await.map_err(failed)?;
            let buffer = &mut self.buffer;
            let received = ready.try_io(|socket| {
                let fd = socket.get_ref().as_raw_fd();
                Ok(recv(fd, buffer, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC)?)
            });
            match received {
                // Empty. Only now does the kernel deliver again what it could not: who looked for
                // himself before would miss what happened since, without another word.
                Err(_would_block) if self.overrun => {
                    self.overrun = false;
                    self.note(Event::Overrun);
                }
                Err(_would_block) => {}
                Ok(Ok(length)) if length <= self.buffer.len() => self.read(length),
                Ok(Ok(_)) => self.overrun = true,
                Ok(Err(error)) => match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::ENOBUFS) => self.overrun = true,
                    Some(Errno::EINTR) => {}
                    _ => return Err(failed(error)),
                },
            }
        }
    }

    fn read(&mut self, length: usize) {
        let buffer = std::mem::take(&mut self.buffer);
        let mut rest = &buffer[..length];
        while let Some((header, payload)) = next_message(&mut rest) {
            if let Some(event) = self.event(header.kind, payload) {
                self.note(event);
            }
        }
        self.buffer = buffer;
    }

    fn event(&self, kind: u16, payload: &[u8]) -> Option<Event> {
        match kind {
            // A bridge port's end is told twice: for the bridge family first, when it only leaves the
            // bridge. The other one has no master any more, but still its group.
            libc::RTM_DELLINK => {
                let link = Link::parse(payload)?;
                if i32::from(link.family) != libc::AF_UNSPEC {
                    None
                } else if link.group == self.links.ports {
                    Some(Event::PortGone { ifindex: link.index })
                } else {
                    (link.group == self.links.bridges).then_some(Event::BridgeGone)
                }
            }
            libc::RTM_NEWROUTE | libc::RTM_DELROUTE => {
                // The prefix length and the kind, of `struct rtmsg`: most routes need no more.
                let (length, kind_of_route) = (*payload.get(1)?, *payload.get(7)?);
                let is_of_interest = length == 0 || kind_of_route == libc::RTN_UNREACHABLE;
                if is_of_interest { self.route_event(kind, &Route::parse(payload)?) } else { None }
            }
            _ => None,
        }
    }

    fn route_event(&self, kind: u16, route: &Route) -> Option<Event> {
        if route.is_default() {
            Some(Event::DefaultRouteChanged)
        } else if delegations::tells_of_one(route) {
            Some(Event::DelegationsChanged)
        } else {
            let gone = kind == libc::RTM_DELROUTE && host::keeps_a_range(route, &self.links);
            gone.then_some(Event::RangeGone)
        }
    }

    /// Nobody needs to hear twice at once that something must be looked at.
    fn note(&mut self, event: Event) {
        if !self.pending.contains(&event) {
            self.pending.push_back(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::kernel::testing::{Bench, Container, in_netns, port, sh};

    /// The next event, or none within a generous time.
    async fn next(events: &mut Events) -> Event {
        tokio::time::timeout(Duration::from_secs(20), events.next()).await.unwrap().unwrap()
    }

    fn in_runtime(body: impl AsyncFnOnce() + Send + 'static) {
        in_netns(|| {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            runtime.enable_all().build().unwrap().block_on(body());
        });
    }

    #[test]
    fn the_end_of_a_namespace_is_told_once_by_the_ports_number() {
        in_runtime(async || {
            let mut bench = Bench::new();
            let (container, other) = (Container::new(), Container::new());
            let (first, second) =
                (bench.attach(&container, &port(1)), bench.attach(&other, &port(2)));
            let mut events = Events::listen(&bench.host.links).unwrap();
            // Others' links are no event.
            sh("ip link add v6kx type veth peer name v6ky && ip link del v6kx");
            // The namespace's last descriptor.
            drop(container);
            assert_eq!(next(&mut events).await, Event::PortGone { ifindex: first });
            // And a container that deletes its own end.
            other.sh("ip link del eth0");
            assert_eq!(next(&mut events).await, Event::PortGone { ifindex: second });
            sh("ip link del v6k0");
            assert_eq!(next(&mut events).await, Event::BridgeGone);
        });
    }

    #[test]
    fn a_default_route_that_comes_or_goes_is_told_and_no_other_route() {
        in_runtime(async || {
            let bench = Bench::new();
            let mut events = Events::listen(&bench.host.links).unwrap();
            sh("ip -6 route add 2001:db8:ffff::/48 dev lo");
            sh("ip -6 route add unreachable default metric 5000");
            sh("ip link add v6kup type veth peer name v6kpeer && ip link set v6kup up");
            sh("ip -6 route add default via fe80::1 dev v6kup");
            assert_eq!(next(&mut events).await, Event::DefaultRouteChanged);
            sh("ip -6 route del default via fe80::1 dev v6kup");
            assert_eq!(next(&mut events).await, Event::DefaultRouteChanged);
            sh("ip link del v6k0");
            assert_eq!(next(&mut events).await, Event::BridgeGone);
        });
    }

    #[test]
    fn what_is_delegated_is_told_as_it_comes_and_goes() {
        in_runtime(async || {
            let bench = Bench::new();
            let mut events = Events::listen(&bench.host.links).unwrap();
            for other in ["unreachable 2001:db8:9::/56", "2001:db8:9::/64 dev lo proto dhcp"] {
                sh(&format!("ip -6 route add {other} && ip -6 route del {other}"));
            }
            for verb in ["add", "del"] {
                sh(&format!(
                    "ip -6 route {verb} unreachable 2001:db8:9::/56 proto dhcp metric 1024"
                ));
                assert_eq!(next(&mut events).await, Event::DelegationsChanged, "{verb}");
            }
            sh("ip link del v6k0");
            assert_eq!(next(&mut events).await, Event::BridgeGone);
        });
    }

    #[test]
    fn that_somebody_deletes_the_route_of_our_range_is_told_and_no_others() {
        in_runtime(async || {
            let bench = Bench::new();
            let mut events = Events::listen(&bench.host.links).unwrap();
            // Another daemon's, by its metric.
            for verb in ["add", "del"] {
                sh(&format!("ip -6 route {verb} unreachable 2001:db8:9::/80 proto 118 metric 7"));
            }
            sh("ip -6 route del unreachable 2001:db8:1:2:3::/80");
            assert_eq!(next(&mut events).await, Event::RangeGone);
            sh("ip link del v6k0");
            assert_eq!(next(&mut events).await, Event::BridgeGone);
        });
    }

    #[test]
    fn lost_events_are_told() {
        in_runtime(async || {
            let bench = Bench::new();
            let mut events = Events::listen_with(&bench.host.links, 2048).unwrap();
            for n in 0..20 {
                sh(&format!("ip link add v6kx{n} type veth peer name v6ky{n}"));
            }
            assert_eq!(next(&mut events).await, Event::Overrun);
            // From here on nothing is lost without a word.
            sh("ip link del v6k0");
            let seen = next(&mut events).await;
            assert!(matches!(seen, Event::BridgeGone | Event::Overrun), "{seen:?}");
        });
    }
}
