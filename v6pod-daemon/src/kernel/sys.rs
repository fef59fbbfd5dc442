//! The system calls that no crate wraps safely. The only unsafe code of v6pod.
//!
//! Every other crate forbids unsafe code; in this one it is denied, and `make lint` sees to it that
//! no other file allows it.
//!
//! Miri interprets none of these calls (ioctls on nsfs, SO_NETNS_COOKIE, epoll on descriptors of the
//! host's), so it cannot run this module. Its blocks are short enough to be checked by eye: each
//! passes at most one pointer, to a local of the size that the kernel's header names. The tests of
//! [`namespace`](super::namespace) and [`process`](super::process) run them against the kernel.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::libc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The kind of namespace behind a descriptor: one of `CLONE_NEW*` (ioctl_nsfs(2), Linux 4.11).
pub(super) fn ns_type(namespace: impl AsFd) -> io::Result<libc::c_int> {
    ns_ioctl(namespace, libc::NS_GET_NSTYPE)
}

/// The user namespace that owns the namespace behind a descriptor (Linux 4.9).
pub(super) fn owning_user_ns(namespace: impl AsFd) -> io::Result<OwnedFd> {
    let fd = ns_ioctl(namespace, libc::NS_GET_USERNS)?;
    // SAFETY: the kernel has just opened this descriptor for us (close-on-exec), nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The uid, as this process's user namespace sees it, that made a user namespace (Linux 4.11).
pub(super) fn user_ns_owner(user_namespace: impl AsFd) -> io::Result<libc::uid_t> {
    let mut uid: libc::uid_t = 0;
    let fd = user_namespace.as_fd().as_raw_fd();
    // SAFETY: NS_GET_OWNER_UID writes one uid_t to the pointer, which lives until the call is over.
    let result = unsafe { libc::ioctl(fd, libc::NS_GET_OWNER_UID, &raw mut uid) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(uid) }
}

/// The number that the network namespace of a socket has as long as the machine is up: never used
/// again, other than an inode (Linux 5.14; `ENOPROTOOPT` before).
pub(super) fn netns_cookie(socket: impl AsFd) -> io::Result<u64> {
    let mut cookie: u64 = 0;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the pointers are to a u64 and to its length, and live until the call is over.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// Has tokio watch a descriptor for being readable.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open as long as it lives, and always the same one.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// The same for a descriptor that somebody else closes, later.
pub(super) fn watch_borrowed(fd: BorrowedFd<'_>) -> io::Result<AsyncFd<BorrowedFd<'_>>> {
    // SAFETY: a BorrowedFd stays open as long as the borrow lasts, and the result does not outlive it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// Makes a descriptor that this process was started with its own, if it is what it should be.
pub(super) fn take_over(
    number: RawFd,
    is_right: impl FnOnce(BorrowedFd<'_>) -> io::Result<bool>,
) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: a number that is not open only makes the calls in `is_right` fail; nobody closes it
    // meanwhile, for this is called while the process has one thread.
    let right = is_right(unsafe { BorrowedFd::borrow_raw(number) })?;
    if !right {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a listening socket"));
    }
    // SAFETY: it is open and listens. This process has not opened a listening socket yet, so it is
    // one that it was started with, and `handed::listeners` takes those over once: nobody else
    // has it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// The name of the threads of [`spawn_with_table_below`].
pub(super) const ENDING: &str = "ending";

/// Spawns a thread that shares its descriptors with no other: its own table has those below a number.
/// It does `work`, told whether there is such a table (`close_range(2)` with `CLOSE_RANGE_UNSHARE`,
/// Linux 5.9), and ends, and its table with it. `work` must use no descriptor.
pub(super) fn spawn_with_table_below(
    number: RawFd,
    work: impl FnOnce(io::Result<()>) + Send + 'static,
) -> io::Result<()> {
    let first = libc::c_uint::try_from(number).map_err(|_| io::ErrorKind::InvalidInput)?;
    let all = move || {
        // SAFETY: no memory is touched. The numbers from `first` on are closed in this thread's own table
        // alone: the others' stays as it is. Nothing in this thread owns one of them.
        let result = unsafe {
            libc::syscall(
                libc::SYS_close_range,
                first,
                libc::c_uint::MAX,
                libc::CLOSE_RANGE_UNSHARE,
            )
        };
        work(if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) });
    };
    let thread = std::thread::Builder::new().name(ENDING.into()).stack_size(64 << 10);
    thread.spawn(all).map(drop)
}

/// An nsfs ioctl without argument whose answer is its return value.
fn ns_ioctl(namespace: impl AsFd, request: libc::Ioctl) -> io::Result<libc::c_int> {
    // SAFETY: the requests this is called with take no argument, so no memory is touched. On a
    // descriptor that is no namespace they are unknown numbers; callers ask only about nsfs files.
    let result = unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
