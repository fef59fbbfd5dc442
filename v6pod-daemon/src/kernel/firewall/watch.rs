//! What the kernel tells unasked about the firewall: that rules were taken away, and that other
//! programs have changed theirs.
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

/// What is to be looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct News {
    /// Something of the instance's tables may have been taken away.
    pub lost: bool,
    /// Chains or rules of other tables may have changed.
    pub others: bool,
}

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

    /// Waits until something of the instance's tables was taken away, other tables were changed, or the
    /// kernel could not tell everything. All that was told until then is one piece of news. Nothing is
    /// lost if the future is dropped before it is ready.
    pub async fn next(&mut self) -> Result<News, Error> {
        const ALL: News = News { lost: true, others: true };

        let mut news = News::default();
        loop {
            let mut ready = self.socket.readable().await.map_err(failed)?;
            let buffer = &mut self.buffer;
            let received = ready.try_io(|socket| {
                let fd = socket.get_ref().as_raw_fd();
                Ok(recv(fd, buffer, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC)?)
            });
            let told = match received {
                Err(_would_block) if news != News::default() => return Ok(news),
                Err(_would_block) => News::default(),
                Ok(Ok(length)) if length > self.buffer.len() => ALL,
                Ok(Ok(length)) => self.read(length),
                Ok(Err(error)) => match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::ENOBUFS) => ALL,
                    Some(Errno::EINTR) => News::default(),
                    _ => return Err(failed(error)),
                },
            };
            news = News { lost: news.lost || told.lost, others: news.others || told.others };
        }
    }

    fn read(&self, length: usize) -> News {
        let (mut rest, mut news) = (&self.buffer[..length], News::default());
        while let Some((header, payload)) = next_message(&mut rest) {
            news.lost |= message::is_loss(header.kind, payload, &self.table);
            news.others |= message::is_others_change(header.kind, payload, &self.table);
        }
        news
    }
}

fn failed(error: io::Error) -> Error {
    Error::io("listen to the firewall", error)
}
