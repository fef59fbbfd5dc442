//! Identifiers: each is parsed once, at the edge, and cannot be wrong afterwards.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Why a text is not the identifier it was taken for. The text itself is not repeated: it may come
/// from somebody who wants it in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParseIdError(&'static str);

impl fmt::Display for ParseIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for ParseIdError {}

/// A user id as the initial user namespace sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[cfg_attr(
    feature = "openapi",
    derive(utoipa::ToSchema),
    schema(format = "uint32", maximum = 4_294_967_294_u64)
)]
#[serde(transparent)]
pub struct Uid(u32);

impl Uid {
    /// root, the owner of the initial user namespace.
    pub const ROOT: Self = Self(0);

    /// A uid, unless it is `(uid_t) -1`, which system calls take for "none" and nobody can have.
    pub const fn new(raw: u32) -> Option<Self> {
        if raw == u32::MAX { None } else { Some(Self(raw)) }
    }

    /// The number.
    pub const fn as_raw(self) -> u32 {
        self.0
    }

    /// Whether this is root.
    pub const fn is_root(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Uid {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // `u32::from_str` takes a leading '+'.
        if !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(ParseIdError("a user id is a decimal number"));
        }
        text.parse()
            .ok()
            .and_then(Self::new)
            .ok_or(ParseIdError("a user id is a number from 0 to 4294967294"))
    }
}

impl<'de> Deserialize<'de> for Uid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = u32::deserialize(deserializer)?;
        Self::new(raw)
            .ok_or_else(|| de::Error::custom("a user id is a number from 0 to 4294967294"))
    }
}

/// Implements the serde traits of a type by its `Display` and `FromStr`.
macro_rules! serde_as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

/// Implements `FromStr` and the rest for a text of a fixed number of lower-case hex digits. Clones share
/// it: many tables have the same ids.
macro_rules! hex_id {
    ($type:ident, $digits:literal, $wrong:literal) => {
        impl $type {
            /// The digits.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The first twelve digits, as people and podman show it.
            pub fn short(&self) -> &str {
                &self.0[..12]
            }
        }

        impl FromStr for $type {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
                if text.len() == $digits && text.bytes().all(hex) {
                    Ok(Self(text.into()))
                } else {
                    Err(ParseIdError($wrong))
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        serde_as_text!($type);
    };
}

/// A container's id as podman gives it: 64 lower-case hex digits. From a caller it is a claim,
/// worth something only among that caller's own containers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(value_type = String, pattern = "^[0-9a-f]{64}$"))]
pub struct ContainerId(Arc<str>);

hex_id!(ContainerId, 64, "a container id is 64 lower-case hex digits");

/// The daemon's own id of an attachment: 32 lower-case hex digits, drawn at random.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(value_type = String, pattern = "^[0-9a-f]{32}$"))]
pub struct AttachmentId(Arc<str>);

hex_id!(AttachmentId, 32, "an attachment's id is 32 lower-case hex digits");

impl AttachmentId {
    /// The id that these random bits spell.
    pub fn from_bits(bits: u128) -> Self {
        Self(format!("{bits:032x}").into())
    }

    /// What stands for the container's id while nobody has said which container it is: these digits
    /// twice.
    pub fn stand_in(&self) -> ContainerId {
        ContainerId(self.0.repeat(2).into())
    }
}

/// The name of a network interface as Linux takes it (`dev_valid_name`): 1 to 15 bytes, neither
/// `.` nor `..`, no `/`, `:` or white space. Restricted further to printable ASCII without `%`,
/// which the kernel would take for a template.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(value_type = String, max_length = 15))]
pub struct LinkName(Box<str>);

impl LinkName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LinkName {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |b: u8| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'%');
        let length = (1..=15).contains(&text.len());
        if length && text != "." && text != ".." && text.bytes().all(allowed) {
            Ok(Self(text.into()))
        } else {
            Err(ParseIdError(
                "an interface's name is 1 to 15 characters without '/', ':', '%' or spaces",
            ))
        }
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

serde_as_text!(LinkName);

/// The name of an engine's network: letters, digits, `.`, `_` and `-`, a letter or digit first, at most 128
/// characters (SPEC.md of CNI, section 1; the limit is ours).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(value_type = String, max_length = 128, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$"))]
pub struct NetworkName(Box<str>);

impl NetworkName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NetworkName {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let begins = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        if begins && text.len() <= 128 && text.bytes().all(allowed) {
            Ok(Self(text.into()))
        } else {
            Err(ParseIdError("a network's name is 1 to 128 letters, digits, '.', '_' and '-'"))
        }
    }
}

impl fmt::Display for NetworkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

serde_as_text!(NetworkName);

/// A unicast Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(value_type = String))]
pub struct Mac([u8; 6]);

impl Mac {
    /// A unicast, locally administered address (IEEE 802, section 8.2) from six bytes: the two low
    /// bits of the first byte are set as these properties want them.
    pub const fn local(bytes: [u8; 6]) -> Self {
        let [first, b, c, d, e, f] = bytes;
        Self([(first & 0xfc) | 0x02, b, c, d, e, f])
    }

    /// The six bytes.
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl FromStr for Mac {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: ParseIdError = ParseIdError("an Ethernet address is six pairs of hex digits");
        let mut bytes = [0; 6];
        let mut pairs = text.split(':');
        for byte in &mut bytes {
            let pair = pairs.next().filter(|p| p.len() == 2).ok_or(WRONG)?;
            // `from_str_radix` takes a leading '+'.
            if !pair.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(WRONG);
            }
            *byte = u8::from_str_radix(pair, 16).map_err(|_| WRONG)?;
        }
        if pairs.next().is_some() || bytes[0] & 1 == 1 {
            return Err(WRONG);
        }
        Ok(Self(bytes))
    }
}

serde_as_text!(Mac);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_id_has_64_lower_case_hex_digits() {
        assert!("ab".repeat(32).parse::<ContainerId>().is_ok());
        for wrong in ["", &"a".repeat(63), &"a".repeat(65), &"A".repeat(64), &"g".repeat(64)] {
            assert!(wrong.parse::<ContainerId>().is_err(), "{wrong:?}");
        }
        // 32 characters of two bytes each: the length in bytes is right.
        assert!("é".repeat(32).parse::<ContainerId>().is_err());
    }

    #[test]
    fn a_uid_is_never_minus_one_nor_signed() {
        assert_eq!("1000".parse::<Uid>().unwrap().as_raw(), 1000);
        for wrong in ["", "-1", "+1", "4294967295", "4294967296", " 1", "0x1"] {
            assert!(wrong.parse::<Uid>().is_err(), "{wrong:?}");
        }
        assert!(serde_json::from_str::<Uid>("4294967295").is_err());
    }

    #[test]
    fn a_link_name_is_one_that_linux_takes() {
        assert!("eth0".parse::<LinkName>().is_ok());
        for wrong in ["", ".", "..", "a/b", "a b", "eth%d", "a:1", "abcdefghijklmnop", "é"] {
            assert!(wrong.parse::<LinkName>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_mac_is_local_and_unicast_and_survives_its_text() {
        let mac = Mac::local([0xff; 6]);
        assert_eq!(mac.to_string(), "fe:ff:ff:ff:ff:ff");
        assert_eq!(mac.to_string().parse::<Mac>().unwrap(), mac);
        for wrong in [
            "",
            "01:00:00:00:00:00",
            "02:00:00:00:00",
            "02:00:00:00:00:00:00",
            "2:0:0:0:0:0",
            "02:00:5e:ff:+0:1a",
        ] {
            assert!(wrong.parse::<Mac>().is_err(), "{wrong:?}");
        }
    }
}
