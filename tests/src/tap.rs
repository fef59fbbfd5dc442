//! A packet socket on an interface: sends any frame, sees every one that comes in.

use std::fs::File;
use std::net::Ipv6Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvfrom, send,
    setsockopt, socket,
};

use crate::{PATIENCE, eventually};

/// Room for some thousand frames.
const ROOM: usize = 16 << 20;

/// PACKET_OUTGOING of linux/if_packet.h.
const OUTGOING: u8 = 4;

/// A packet socket. It keeps the namespace of its interface.
#[derive(Debug)]
pub struct Tap {
    socket: OwnedFd,
    mac: [u8; 6],
}

impl Tap {
    /// On the interface of this name in that network namespace.
    #[track_caller]
    pub fn open(namespace: &File, interface: &str) -> Self {
        Self::try_open(namespace, interface)
            .unwrap_or_else(|| panic!("no interface {interface} that stays"))
    }

    /// The same on an interface that may not be there, or no more.
    #[track_caller]
    pub fn try_open(namespace: &File, interface: &str) -> Option<Self> {
        let open = || {
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("entering a namespace");
            let all = getifaddrs().expect("listing interfaces");
            let mut of_this = all.filter(|entry| entry.interface_name == interface);
            Self::on(&of_this.find_map(|entry| entry.address?.as_link_addr().copied())?)
        };
        thread::scope(|scope| scope.spawn(open).join()).expect("opening a packet socket")
    }

    fn on(address: &LinkAddr) -> Option<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let family = AddressFamily::Packet;
        let socket = socket(family, SockType::Raw, flags, SockProtocol::EthAll);
        let socket = socket.expect("a packet socket");
        setsockopt(&socket, RcvBufForce, &ROOM).expect("a large buffer");
        match bind(socket.as_raw_fd(), address) {
            Err(Errno::ENODEV) => None,
            bound => {
                bound.expect("binding a packet socket");
                Some(Self { socket, mac: address.addr().expect("an Ethernet address") })
            }
        }
    }

    /// The interface's Ethernet address.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Sends a frame as it is.
    #[track_caller]
    pub fn send(&self, frame: &[u8]) {
        self.transmit(frame).expect("sending a frame");
    }

    /// The same on an interface that may be off, or gone: false. Where it is too much, it is lost.
    #[track_caller]
    pub fn try_send(&self, frame: &[u8]) -> bool {
        match self.transmit(frame) {
            Err(Errno::ENETDOWN | Errno::ENXIO | Errno::ENODEV) => false,
            Err(Errno::ENOBUFS | Errno::EAGAIN) => true,
            sent => sent.map(|()| true).expect("sending a frame"),
        }
    }

    fn transmit(&self, frame: &[u8]) -> nix::Result<()> {
        send(self.socket.as_raw_fd(), frame, MsgFlags::empty()).map(drop)
    }

    /// All frames that came in since the last call, up to the first that holds `last`, which
    /// is waited for.
    #[track_caller]
    pub fn frames_until(&self, last: &[u8]) -> Frames {
        let mut frames = Vec::new();
        eventually(PATIENCE, "the last frame comes by", || {
            while let Some(frame) = self.next() {
                let done = holds(&frame, last);
                frames.push(frame);
                if done {
                    return Some(());
                }
            }
            None
        });
        Frames(frames)
    }

    /// Waits until each of these marks has come by since the last call, in whatever order.
    #[track_caller]
    pub fn frames_with_each(&self, mut marks: Vec<Vec<u8>>) {
        eventually(PATIENCE, "the last of the frames comes by", || {
            while let Some(frame) = self.next() {
                marks.retain(|mark| !holds(&frame, mark));
            }
            marks.is_empty().then_some(())
        });
    }

    /// Forgets what came by so far.
    pub fn drain(&self) {
        while self.next().is_some() {}
    }

    /// What came by until now, and in the time given: only to be used where nothing is expected.
    pub fn frames_within(&self, time: Duration) -> Frames {
        thread::sleep(time);
        Frames(std::iter::from_fn(|| self.next()).collect())
    }

    fn next(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 65_536];
        loop {
            match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut frame) {
                // What the interface sends is shown too, answers that quote a frame among it.
                Ok((_, from)) if from.is_some_and(|from| from.pkttype() == OUTGOING) => {}
                Ok((length, _)) => {
                    frame.truncate(length);
                    return Some(frame);
                }
                // Its interface is gone or was switched off: there is nothing to see.
                Err(Errno::EAGAIN | Errno::ENETDOWN) => return None,
                Err(errno) => panic!("receiving a frame: {errno}"),
            }
        }
    }
}

/// Frames that came by.
#[derive(Debug)]
pub struct Frames(Vec<Vec<u8>>);

impl Frames {
    /// How many of them hold these bytes.
    pub fn with(&self, mark: &[u8]) -> usize {
        self.0.iter().filter(|frame| holds(frame, mark)).count()
    }

    /// How many of them hold these bytes and bear this IPv6 source: errors that quote them do not.
    pub fn with_from(&self, mark: &[u8], source: Ipv6Addr) -> usize {
        // Behind Ethernet's header of 14 bytes and the first 8 of IPv6's.
        let is_from = |frame: &Vec<u8>| frame.get(22..38) == Some(&source.octets()[..]);
        self.0.iter().filter(|frame| is_from(frame) && holds(frame, mark)).count()
    }
}

fn holds(frame: &[u8], mark: &[u8]) -> bool {
    frame.windows(mark.len()).any(|window| window == mark)
}
