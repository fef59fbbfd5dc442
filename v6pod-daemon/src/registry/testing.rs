//! What the tests of this room share.

use super::*;

/// The `n`th attachment, under this name.
pub(super) fn registration(n: u16, name: &str) -> Registration {
    Registration {
        id: AttachmentId::from_bits(u128::from(n)),
        label: Label::from_name(name).unwrap(),
        address: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 1, n),
        owner: "1000".parse().unwrap(),
        user: Some("alice".to_owned()),
        container: format!("{n:064x}").parse().unwrap(),
        name: name.to_owned(),
    }
}
