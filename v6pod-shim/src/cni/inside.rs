//! A look into the container's namespace, for CHECK.

use std::fs;
use std::net::Ipv6Addr;
use std::os::fd::AsFd;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use v6pod_proto::Attachment;

/// Whether the address and the default route are there; what is missing if not. The calling thread, the
/// program's only one, stays in that namespace.
pub(super) fn check(netns: &impl AsFd, attachment: &Attachment) -> Result<(), String> {
    move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(|error| format!("the network namespace cannot be entered: {error}"))?;
    let read = |file: &str| {
        fs::read_to_string(file).map_err(|error| format!("the namespace's {file}: {error}"))
    };
    let (address, interface) = (attachment.address, attachment.interface.as_str());
    if !has_address(&read("/proc/thread-self/net/if_inet6")?, address, interface) {
        return Err(format!("{interface} inside does not have {address}"));
    }
    if !has_default_route(&read("/proc/thread-self/net/ipv6_route")?, interface) {
        return Err(format!("there is no default route by {interface} inside"));
    }
    Ok(())
}

/// A line is the address in hex, the interface's number, prefix length, scope, flags, name.
fn has_address(if_inet6: &str, address: Ipv6Addr, interface: &str) -> bool {
    let address = format!("{:032x}", address.to_bits());
    if_inet6.lines().any(|line| {
        let mut words = line.split_ascii_whitespace();
        words.next() == Some(&address) && words.next_back() == Some(interface)
    })
}

/// A line is destination and its length, source and its length, gateway and five more, the name last.
/// The kernel's own entry for what is unreachable is by `lo`.
fn has_default_route(ipv6_route: &str, interface: &str) -> bool {
    let zero = "0".repeat(32);
    ipv6_route.lines().any(|line| {
        let mut words = line.split_ascii_whitespace();
        words.next() == Some(&zero)
            && words.next() == Some("00")
            && words.next_back() == Some(interface)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lists_are_read() {
        let list = "20010db8000100020003000000000005 02 80 00 80     eth0\n\
                    00000000000000000000000000000001 01 80 10 80       lo\n";
        let address = "2001:db8:1:2:3::5".parse().unwrap();
        assert!(has_address(list, address, "eth0"));
        assert!(!has_address(list, address, "lo"));
        assert!(!has_address(list, Ipv6Addr::LOCALHOST, "eth0"));

        let zero = "0".repeat(32);
        let by = |name: &str| {
            format!("{zero} 00 {zero} 00 20010db8000100020003000000000001 40 1 0 3 {name}\n")
        };
        assert!(has_default_route(&(by("lo") + &by("eth0")), "eth0"));
        assert!(!has_default_route(&by("lo"), "eth0"));
        let net = format!("{zero} 60 {zero} 00 {zero} 40 1 0 1 eth0\n");
        assert!(!has_default_route(&net, "eth0"));
    }
}
