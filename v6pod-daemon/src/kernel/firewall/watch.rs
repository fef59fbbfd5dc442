//! What the kernel tells unasked about the firewall: that rules were taken away.
//!
//! Guarantee: whoever awaits [`Losses::next`] in a loop, and looks for himself each time, misses no
//! loss. He may be told of one that is none, as when the daemon's own nft replaces the rules.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{MsgFlags, recv};
use tokio::io::unix::AsyncFd;

use super::message;
use crate::core::links::Links;
use crate::kernel::error::Error;
use crate::kernel::netlink::next_message;
use crate::kernel::sys;

/// The stream of losses of one instance.
#[derive(Debug)]
pub struct Losses {
    socket: AsyncFd<OwnedFd>,
    buffer: Box<[u8]>,
    table: String,
}

impl Losses {
    /// Begins to listen, in the calling thread's namespace. Belongs into a tokio runtime.
    pub fn listen(links: &Links) -> Result<Self, Error> {
        let open = || {
            let mut socket = netlink_sys::Socket::new(libc::NETLINK_NETFILTER as isize)?;
            socket.set_non_blocking(true)?;
            socket.bind(&netlink_sys::SocketAddr::new(0, 0))?;
            socket.add_membership(libc::NFNLGRP_NFTABLES as u32)?;
            sys::watch(socket.as_fd().try_clone_to_owned()?)
        };
        let socket = open().map_err(failed)?;
        Ok(Self { socket, buffer: vec![0; 64 * 1024].into(), table: links.table.to_string() })
    }

    /// Waits until something of the instance's tables was taken away, or the kernel could not tell
    /// everything. All that was told until then is one loss. Nothing is lost if the future is dropped
    /// before it is ready.
    pub async fn next(&mut self) -> Result<(), Error> {
        let mut lost = false;
        loop {
            let mut ready = self.socket.readable().await.map_err(failed)?;
            let buffer = &mut self.buffer;
            let received = ready.try_io(|socket| {
                let fd = socket.get_ref().as_raw_fd();
                Ok(recv(fd, buffer, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC)?)
            });
            lost |= match received {
                Err(_would_block) if lost => return Ok(()),
                Err(_would_block) => false,
                Ok(Ok(length)) => length > self.buffer.len() || self.is_loss(length),
                Ok(Err(error)) => match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::ENOBUFS) => true,
                    Some(Errno::EINTR) => false,
                    _ => return Err(failed(error)),
                },
            };
        }
    }

    fn is_loss(&self, length: usize) -> bool {
        let mut rest = &self.buffer[..length];
        std::iter::from_fn(|| next_message(&mut rest))
            .any(|(header, payload)| message::is_loss(header.kind, payload, &self.table))
    }
}

fn failed(error: io::Error) -> Error {
    Error::io("listen to the firewall", error)
}
