//! Answers of the kernel's.

use v6pod_daemon::fuzz;

/// A datagram with answers; see [`fuzz::netlink`].
pub fn netlink(data: &[u8]) {
    fuzz::netlink(data);
}

/// A link's numbers and name, written by rust-netlink; see [`fuzz::link_round_trip`].
pub fn link(data: &[u8]) {
    let Some((numbers, name)) = data.split_first_chunk::<16>() else { return };
    let number = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| numbers[4 * at + i]));
    let Ok(name) = std::str::from_utf8(name) else { return };
    // The kernel's names have at most 15 bytes, its aliases 255, and neither a zero.
    if name.len() <= 255 && !name.contains('\0') {
        fuzz::link_round_trip([number(0), number(1), number(2), number(3)], name);
    }
}

/// An answer about a connection; see [`fuzz::sock_diag`].
pub fn sock_diag(data: &[u8]) {
    fuzz::sock_diag(data);
}
