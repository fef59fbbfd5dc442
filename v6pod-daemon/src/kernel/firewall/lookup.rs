//! Single elements of the live sets: what the kernel has, and not what was once told it.

use v6pod_proto::{LinkName, Mac};

use super::{Error, RulesSocket, hole_element, message};
use crate::core::explain::Element;
use crate::core::links::Links;
use crate::core::ruleset::{KNOWN_SET, OWNER_SET, PORT_SET, ROUTED_SET};
use message::{Message, Table};

impl RulesSocket {
    /// Whether the kernel has this element, by NFT_MSG_GETSETELEM: one lookup, whatever else is in the
    /// set. Where the table or the set is gone it has not.
    pub fn has(&mut self, links: &Links, element: &Element) -> Result<bool, Error> {
        let (family, set, key) = of(element);
        let question = Message::get_element(Table { family, name: &links.table }, set, &key);
        let doing = format!("look up {} in the set {set} of {}", element.text(), links.table);
        let read = |kind, payload: &[u8]| message::elements(kind, payload);
        match self.socket.get(doing, &question, read) {
            Ok(keys) => Ok(keys.is_some_and(|keys| keys.contains(&key))),
            Err(error) if error.is_gone() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Family, set and key, as the rules' socket has them.
fn of(element: &Element) -> super::Element {
    match element {
        Element::Sender(port, mac, address) => (
            message::BRIDGE,
            PORT_SET,
            [&name_key(port)[..], &mac_key(*mac), &address.octets()].concat(),
        ),
        Element::Known(mac, address) => {
            (message::INET, KNOWN_SET, [&mac_key(*mac)[..], &address.octets()].concat())
        }
        Element::Routed(port, address) => {
            (message::INET, ROUTED_SET, [&name_key(port)[..], &address.octets()].concat())
        }
        Element::Owner(address, uid) => {
            let uid = uid.as_raw().to_ne_bytes();
            (message::INET, OWNER_SET, [&address.octets()[..], &uid].concat())
        }
        Element::Open(address, hole) => hole_element(*address, hole),
        Element::Subnet(length, address) => {
            (message::INET, length.set(), address.octets().to_vec())
        }
    }
}

/// `ifname`: IFNAMSIZ is 16, and a name has 15 bytes at most.
pub(super) fn name_key(name: &LinkName) -> [u8; 16] {
    let mut key = [0; 16];
    for (to, from) in key.iter_mut().zip(name.as_str().bytes()) {
        *to = from;
    }
    key
}

/// `ether_addr`, which takes two registers.
pub(super) fn mac_key(mac: Mac) -> [u8; 8] {
    let [a, b, c, d, e, f] = mac.octets();
    [a, b, c, d, e, f, 0, 0]
}
